"""Test reading and writing files: atomic replacement, leftovers of killed processes, and safe JSON."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imagen.errors import UserError
from imagen.files import MOST_NESTED, open_given, parse_json, read_json, replacing, write_json

ROOT = str(Path(__file__).parent.parent)


def test_a_file_is_replaced_atomically_and_synced(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def note(*arguments, name=name, original=original):
            events.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, note)
    path = tmp_path / "new" / "folder" / "x.json"
    write_json(path, {"a": [1, 2.5, "é"]})
    assert events == ["fsync", "replace", "fsync"]  # the file, then its new name, then the folder
    assert read_json(path) == {"a": [1, 2.5, "é"]}
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_temporary_files_of_a_killed_process_are_removed_by_the_next(tmp_path):
    script = """
import os, signal, sys
from imagen.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "x"], env={**os.environ, "PYTHONPATH": ROOT})
    (left,) = tmp_path.iterdir()
    stem, number, ending = re.fullmatch(r"(\.x\.)(\d+)(-\w+\.tmp)", left.name).groups()
    kept = {
        f"{stem}{os.getppid()}{ending}",  # of a running process
        f"{stem}{number}-{'0' * 12}.tmp",  # of a process on another machine
        f".x.{number}.tmp",  # not one of our names
    }
    for name in kept:
        (tmp_path / name).touch()
    write_json(tmp_path / "y", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"y", *kept}


@pytest.mark.parametrize("failure", [KeyError("x"), KeyboardInterrupt()])
def test_other_errors_propagate_and_leave_no_temporary_file(tmp_path, failure):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(type(failure)), replacing(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "failure, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; choose another folder$"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, failure, message):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(UserError, match=f"cannot write {path}: .*{message}"), replacing(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_at_fsync_is_a_user_error(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "x", 1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write_json(tmp_path / "x", 2)
    assert read_json(tmp_path / "x") == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("path", ["file/x", "file/folder/x"])
def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"cannot write .*{path}: .*file.* is not a folder; choose another folder"):
        write_json(tmp_path / path, 1)


def test_invalid_json_is_a_user_error(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x", float("nan"))
    (tmp_path / "half").write_text('{"a": ')
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "folder").mkdir()
    for name, message in (
        *(("half", "is not valid JSON"), ("binary", "is not valid JSON"), ("deep", "is not valid JSON")),
        *(("folder", "folder is a folder, not a file"), ("missing", "does not exist")),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_json(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_given(tmp_path / name) as file:
            assert file.read() == b"abc"
    os.mkfifo(tmp_path / "pipe")  # a pipe without a writer
    (tmp_path / "locked").touch()
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, message in (
            *(("pipe", "pipe is a pipe, not a file"), ("socket", "socket is a socket, not a file")),
            *(("/dev/zero", "/dev/zero is a device, not a file"), (".", ". is a folder, not a file")),
            *(("gone", "gone does not exist"), ("file/x", "cannot read file/x: Not a directory")),
            *(("a\0b", "cannot read a\0b: embedded null byte"), ("x" * 300, "cannot read x+: File name too long")),
        ):
            with pytest.raises(UserError, match=f"^{message}$"):
                open_given(name)


def test_a_file_that_becomes_a_pipe_does_not_block(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda *_arguments, **_options: regular)
    with pytest.raises(UserError, match="is a pipe, not a file"):
        open_given(tmp_path / "pipe")


def test_json_nesting_is_limited():
    for opening, closing in (("[", "]"), ('{"a": ', "}")):
        text = opening * MOST_NESTED + "1" + closing * MOST_NESTED
        assert json.dumps(parse_json(text)) == text and parse_json(text.encode()) == parse_json(text)
        for depth in (MOST_NESTED + 1, 900, 100_000):
            with pytest.raises(ValueError, match=f"nested more than {MOST_NESTED} deep"):
                parse_json(opening * depth + "1" + closing * depth)
    assert len(parse_json("[" + ", ".join(["[{}]"] * 1000) + "]")) == 1000  # wide, but not deep


@pytest.mark.parametrize("text", ["NaN", "[1, -Infinity]", '{"a": 1e400}', "-1.5e999", "[" * 50 + "1e309" + "]" * 50])
def test_non_finite_json_numbers_are_rejected(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON: \S+ is not a finite number$"):
        read_json(tmp_path / "x.json")
    parse_json(text, finite=False)
    assert parse_json("[1e308, -0.5, 12345678901234567890123]") == [1e308, -0.5, 12345678901234567890123]


def test_oversized_json_is_rejected(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps("a" * 98))
    assert read_json(tmp_path / "x.json", most=100) == "a" * 98
    with pytest.raises(UserError, match=r"x\.json is larger than 99 bytes, the limit for such JSON files$"):
        read_json(tmp_path / "x.json", most=99)
