"""Build and encode on a local Ray cluster of two workers, including workers that are killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpus import Corpus, write

import imagen
from imagen.data.build import cluster
from imagen.data.build.dataset import build_source
from imagen.data.build.engines import Processes, Work
from imagen.data.embed.encode import encode_shards
from imagen.data.shards.writer import ShardWriter
from imagen.data.sources.base import Part, Record
from imagen.errors import UserError

N, PER_PART = 160, 20


@pytest.fixture(scope="module")
def ray() -> Iterator[cluster.Ray]:
    """Start a local Ray instance with two workers of one CPU each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'imagen-cascade[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        folders = [Path(imagen.__file__).parents[1], *map(Path, sys.path)]  # workers must import from these folders
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("RAY_worker_niceness", "0")  # the default niceness starves workers on a busy machine
        with cluster.connected("local", workers=2):
            yield cluster.builders()


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait_for_kill(note: Path) -> None:
    """Write the process id to `note` and wait to be killed; return at once if the note exists already."""
    if not note.exists():
        note.with_suffix(".new").write_text(str(os.getpid()))
        note.with_suffix(".new").rename(note)
        time.sleep(600)


def kill_waiting_worker(note: Path, killed: list[bytes]) -> None:
    """Kill the worker that waits in `wait_for_kill`, and append its command line to `killed`."""
    deadline = time.monotonic() + 300
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(note.read_text())
    killed.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(pid, signal.SIGKILL)


class HeldCorpus(Corpus):
    """The corpus; the first process that reads part 3 waits in the middle of it."""

    def __init__(self, note: Path):
        super().__init__(N, PER_PART)
        self.note = note

    def read(self, part: Part) -> Iterator[Record]:
        for i, record in enumerate(super().read(part)):
            if i == PER_PART // 2 and part["first"] == 3 * PER_PART:
                wait_for_kill(self.note)
            yield record


class HeldEncoder:
    """Returns fixed embeddings; the first process that encodes the caption `held` waits there."""

    def __init__(self, note: Path):
        self.config = SimpleNamespace(encoder="e", revision="main", width=4, max_tokens=64)
        self.note = note

    def lengths(self, captions: list[str]) -> list[int]:
        return [len(caption) + 1 for caption in captions]

    def untruncated_lengths(self, captions):
        return self.lengths(captions)

    def encode(self, captions: list[str]) -> list[torch.Tensor]:
        if "held" in captions:
            wait_for_kill(self.note)
        return [torch.linspace(-1, 1, 4 * n).view(n, 4) for n in self.lengths(captions)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_the_part_of_a_killed_worker_is_rebuilt_to_the_bytes_of_one_process(ray, tmp_path):
    note, killed = tmp_path / "note", []
    killer = threading.Thread(target=kill_waiting_worker, args=(note, killed))
    killer.start()
    result = build_source(partial(HeldCorpus, note), tmp_path / "ray", engine=ray, progress=False)
    killer.join()
    assert killed and killed[0].startswith(b"ray::")
    assert result == build_source(partial(HeldCorpus, note), tmp_path / "one", workers=1, progress=False)
    assert read_files(tmp_path / "ray") == read_files(tmp_path / "one")


def test_only_missing_parts_are_sent_to_workers(tmp_path):
    sent: list[int] = []

    class Counting(Processes):
        def map(self, make: Callable[[], Work], items: Sequence[Any], probe_file: Path) -> Iterator[tuple[int, Any]]:
            sent.extend(number for number, _ in items)
            return super().map(make, items, probe_file)

    build = partial(build_source, partial(Corpus, N, 40), tmp_path / "out", engine=Counting(1), progress=False)
    result = build()
    before = read_files(tmp_path / "out")
    (tmp_path / "out" / "00001.hashes.npy").unlink()
    assert build() == result and build() == result
    assert sent == [0, 1, 2, 3, 1] and read_files(tmp_path / "out") == before


@pytest.mark.slow  # as the test of a part above
def test_the_shard_of_a_killed_worker_is_encoded_again_to_the_same_bytes(ray, tmp_path):
    for name in ("ray", "one"):
        for split, captions in {"train": "abcdefg", "heldout": ["a", "held"]}.items():
            with ShardWriter(tmp_path / name / split, 2) as writer:
                for i, caption in enumerate(captions):
                    writer.write({"__key__": f"k{i}", "txt": caption.encode()})
    note, killed = tmp_path / "note", []
    killer = threading.Thread(target=kill_waiting_worker, args=(note, killed))
    killer.start()
    assert encode_shards(tmp_path / "ray", HeldEncoder(note), progress=False, engine=ray) == 5
    killer.join()
    assert killed and killed[0].startswith(b"ray::")
    assert encode_shards(tmp_path / "one", HeldEncoder(note), progress=False) == 5
    assert read_files(tmp_path / "ray") == read_files(tmp_path / "one")  # and no lease remains
    assert encode_shards(tmp_path / "ray", HeldEncoder(note), progress=False, engine=ray) == 0


def test_commands_on_ray_write_the_files_of_one_process(ray, request, error_of, tmp_path, monkeypatch):
    write(tmp_path / "corpus", 160)
    run = request.getfixturevalue("imagen")
    monkeypatch.chdir(tmp_path)  # workers must resolve relative paths as we do
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, engine in (("ray", ["--engine", "ray"]), ("one", [])):
        run("data", "build", "corpus", "--out", name, "--workers", 1, *engine, "--max-rejected", 1)
        out = run("data", "encode", name, *engine, *(["--workers", 1] if engine else []))
        assert "2 shards encoded by sentence-transformers/all-MiniLM-L6-v2" in out
        assert "every shard was encoded already" in run("data", "encode", name, *engine)
    torch.set_num_threads(threads)
    assert read_files(tmp_path / "ray") == read_files(tmp_path / "one")
    assert "--device cuda: the Ray cluster has no GPU" in error_of(
        "data", "encode", "ray", "--engine", "ray", "--device", "cuda"
    )
    assert "Ray chooses the GPU" in error_of("data", "encode", "ray", "--engine", "ray", "--device", "cuda:1")


def test_user_errors_in_workers_and_parts_that_kill_every_worker_are_one_line(ray, tmp_path):
    def failing(number: int) -> int:
        if number == 1:
            raise UserError("the second one is bad; mend it")
        return number

    (tmp_path / "probe_file").touch()
    with pytest.raises(UserError, match=r"^the second one is bad; mend it$"):
        list(cluster.builders(1).map(lambda: failing, range(3), tmp_path / "probe_file"))
    stubborn = cluster.Ray(workers=1, attempts=2)
    with pytest.raises(UserError, match=r"^workers were killed in all 2 attempts .* fewer --workers"):
        list(stubborn.map(lambda: lambda _: os.kill(os.getpid(), signal.SIGKILL), [7], tmp_path / "probe_file"))


def test_storage_that_is_not_shared_is_detected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe_file = tmp_path / "build.json"
    probe_file.write_text("{}")
    shared = cluster.SharedFiles(Path.cwd(), probe_file, cluster.file_digest(probe_file))
    shared.enter()
    # Another machine has other contents or no file here.
    for change in (lambda: probe_file.write_text("[]"), probe_file.unlink):
        change()
        with pytest.raises(UserError, match=r"build\.json differs from the same file .* use shared storage"):
            shared.enter()


def test_a_cluster_that_cannot_be_reached_is_a_one_line_error(error_of, tmp_path, monkeypatch):
    build = ("data", "build", tmp_path, "--out", tmp_path / "out")
    assert "--ray-address requires --engine ray" in error_of(*build, "--ray-address", "auto")
    assert "unknown value 'spark'; choose local, ray" in error_of(*build, "--engine", "spark")
    assert "--workers requires --engine ray" in error_of("data", "encode", tmp_path, "--workers", 2)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "run: pip install 'imagen-cascade[ray]'" in error_of(*build, "--engine", "ray")
    with pytest.raises(UserError, match="Ray Client is not supported"):
        cluster.check_address("ray://head:10001")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 \(.*refused\)"):
        cluster.check_address("127.0.0.1:1")
