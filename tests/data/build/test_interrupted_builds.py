"""Test builds beside other processes, and after an interruption during which the source changed."""

import errno
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from corpus import encoded, picture

from imagen.data.build import parts
from imagen.data.build.dataset import build, build_source
from imagen.data.shards.dataset import open_split
from imagen.data.sources.base import Part, Record
from imagen.errors import UserError


class Empty:
    """A source of two parts without records."""

    in_place = False

    def parts(self) -> list[Part]:
        return [{"part": number} for number in range(2)]

    def read(self, part: Part) -> Iterator[Record]:
        yield from ()


def test_shards_of_an_earlier_interrupted_build_of_changed_files_are_deleted(tmp_path, monkeypatch):
    for i in range(12):
        (tmp_path / f"{i:02d}.png").write_bytes(encoded(picture(i), "PNG"))
        (tmp_path / f"{i:02d}.txt").write_text("a")
    given = {"samples_per_shard": 4, "workers": 1, "progress": False, "max_rejected": 1.0}
    real, seen = parts.check, []

    def killing(record, limits):
        seen.append(record)
        if len(seen) == 10:
            raise KeyboardInterrupt
        return real(record, limits)

    monkeypatch.setattr(parts, "check", killing)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tmp_path / ".out", **given)
    monkeypatch.setattr(parts, "check", real)
    for i in range(8):
        (tmp_path / f"{i:02d}.txt").write_text("")
    assert build(tmp_path, tmp_path / ".out", **given)["samples"] == 4
    dataset = open_split(tmp_path / ".out")
    assert [dataset.key(i) for i in range(len(dataset))] == ["08", "09", "10", "11"]


def test_a_second_build_in_the_folder_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    (tmp_path / "a.txt").write_text("a")
    given = tmp_path, tmp_path / ".out"
    with subprocess_lock(given[1]), pytest.raises(UserError, match="another process is building"):
        build(*given, workers=1, progress=False)
    assert build(*given, workers=1, progress=False)["samples"] == 1


def test_a_finished_build_in_a_folder_that_is_read_only_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(picture(0), "PNG"))
    (tmp_path / "a.txt").write_text("a")
    given = tmp_path, tmp_path / ".out"
    made = build(*given, workers=1, progress=False)

    def refusing(path, mode="r", *arguments, **options):  # permissions do not bind the superuser
        if set(mode) & set("wax+") and str(path).startswith(str(given[1])):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *arguments, **options)

    real = open
    monkeypatch.setattr("builtins.open", refusing)
    assert build(*given, workers=1, progress=False) == made


@contextmanager
def subprocess_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock in another process: within one, `lockf` does not exclude."""
    code = (
        "import sys, pathlib; from imagen.files import locked; c = locked(pathlib.Path(sys.argv[1]), ''); c.__enter__()"
    )
    held = [sys.executable, "-c", f"{code}; print('held', flush=True); sys.stdin.read()", str(folder)]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
        process.communicate()


class Unreachable(Empty):
    """A source that only the first process can open, as a store that refuses further requests."""

    def __init__(self) -> None:
        if multiprocessing.parent_process() is not None:
            raise UserError("cannot read the store: 429")


def test_a_worker_that_cannot_open_the_source_says_why(tmp_path):
    with pytest.raises(UserError, match="cannot read the store: 429"):
        build_source(Unreachable, tmp_path / "out", workers=2, progress=False)
