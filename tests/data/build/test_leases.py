"""Test leases: several processes encode one folder, and some are killed."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from encoders import LengthEncoder, LongText

from imagen.data.build import leases as leases_module
from imagen.data.build.leases import Leases, lease_path
from imagen.data.embed import encode as encode_module
from imagen.data.embed.encode import encode_shards
from imagen.data.embed.sidecar import sidecar_path
from imagen.data.shards.index import index_shard
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError

SHARDS = 40
HELD = []  # keeps leases of other machines alive; garbage collection would release them
FORK = multiprocessing.get_context("fork")  # starts a process in milliseconds, so that a kill interrupts only our code


class SlowEncoder(LengthEncoder):
    def encode(self, captions):
        time.sleep(0.03)
        return super().encode(captions)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's threads do not survive a fork
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Write shards with the sidecars of an uninterrupted run."""
    folder, rng = tmp_path_factory.mktemp("encoded"), random.Random(0)
    with ShardWriter(folder, 3) as writer:
        for i in range(3 * SHARDS):
            writer.write({"__key__": f"k{i}", "txt": ("word " * rng.randint(0, 20) + f"{i}").encode()})
    assert encode_shards(folder, LengthEncoder(), 60, progress=False) == SHARDS
    assert hidden_files(folder) == []
    return folder


@pytest.fixture
def folder(encoded, tmp_path):
    """Copy the shards without sidecars."""
    return shutil.copytree(encoded, tmp_path / "shards", ignore=shutil.ignore_patterns("*.text.safetensors"))


def sidecars(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.text.safetensors")}


def hidden_files(folder):
    """Return the names of leases and temporary files."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def uninterrupted(encoded):
    return sidecars(encoded)


def encode(folder, results=None):
    # A short beat: a kill between creating a lease and writing its owner would otherwise cause a long wait.
    encoded = encode_shards(folder, SlowEncoder(), 60, progress=False, leases=Leases(beat=3))
    if results is not None:
        results.put(encoded)


def start_process(folder, results=None):
    process = FORK.Process(target=encode, args=(folder, results))
    process.start()
    return process


def test_killed_and_rerun_encoding_equals_an_uninterrupted_one(folder, uninterrupted):
    rng = random.Random(0)
    for _ in range(4):
        process = start_process(folder)
        time.sleep(rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was killed before it finished
        assert sidecars(folder).items() < uninterrupted.items()
    process = start_process(folder)
    process.join()
    assert process.exitcode == 0
    assert sidecars(folder) == uninterrupted
    # Partial files of killed processes are gone. A lease may remain of a process killed between sidecar and release.
    assert len(hidden_files(folder)) <= 4 and not [name for name in hidden_files(folder) if name.endswith(".tmp")]


def test_processes_divide_the_shards(folder, uninterrupted):
    results = FORK.Queue()
    processes = [start_process(folder, results) for _ in range(3)]
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sum(counts) == SHARDS and min(counts) > 0  # nothing is encoded twice
    assert sidecars(folder) == uninterrupted and hidden_files(folder) == []


def test_other_processes_finish_the_shards_of_a_killed_one(folder, uninterrupted):
    victim, other = start_process(folder), start_process(folder)
    while not sidecars(folder):
        time.sleep(0.01)
    victim.kill()
    victim.join()
    other.join()
    assert (victim.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    assert sidecars(folder) == uninterrupted and len(hidden_files(folder)) <= 1


def lease_of_another_machine(monkeypatch, target, **options):
    """Return a lease of `target` that a process on another machine holds."""
    held = Leases(**options).acquire(target)
    with monkeypatch.context() as patch:
        patch.setattr(leases_module, "HOST_ID", "elsewhere/4026531836")
        assert held.__enter__()
    HELD.append(held)
    return held


def test_encoding_waits_for_another_machine(folder, uninterrupted, monkeypatch, capsys):
    """All shards but one are encoded; then the process waits until the other machine has written the last one."""
    name = sorted(uninterrupted)[7]
    held = lease_of_another_machine(monkeypatch, folder / name, beat=0.05)
    waits = []

    def wait(seconds):
        waits.append(sidecars(folder))
        if len(waits) == 3:
            (folder / name).write_bytes(uninterrupted[name])
            held.__exit__(None, None, None)

    monkeypatch.setattr(encode_module, "sleep", wait)
    assert encode_shards(folder, LengthEncoder(), 60) == SHARDS - 1
    assert len(waits) == 3 and all(found.keys() == uninterrupted.keys() - {name} for found in waits)
    assert sidecars(folder) == uninterrupted and hidden_files(folder) == []
    assert "waiting for 1 shards of other processes" in capsys.readouterr().err


def test_the_lease_of_a_silent_machine_expires(folder, uninterrupted, monkeypatch):
    name = sorted(uninterrupted)[0]
    lease_of_another_machine(monkeypatch, folder / name, beat=1000)
    monkeypatch.setattr(encode_module, "POLL_INTERVAL", 0.02)
    assert encode_shards(folder, LengthEncoder(), 60, progress=False, leases=Leases(stale=0.2)) == SHARDS
    assert sidecars(folder) == uninterrupted and hidden_files(folder) == []


def test_silence_is_measured_by_the_local_clock_and_ended_by_a_touch(tmp_path, monkeypatch):
    """Clocks of machines may differ: only a change of the lease's modification time counts."""
    target, observer = tmp_path / "x", Leases(stale=120)
    lease_of_another_machine(monkeypatch, target, beat=1000)

    def acquire_at(seconds):
        monkeypatch.setattr(leases_module, "time", SimpleNamespace(monotonic=lambda: seconds))
        with observer.acquire(target) as mine:
            return mine

    assert not acquire_at(0) and not acquire_at(119)
    for seconds, touched in ((121, 0), (240, time.time() + 18_000)):
        os.utime(lease_path(target), times=(touched, touched))
        assert not acquire_at(seconds)
    assert not acquire_at(359) and acquire_at(361)


def test_an_owner_touches_its_lease(tmp_path):
    with Leases(beat=0.01).acquire(tmp_path / "x") as mine:
        assert mine
        os.utime(lease_path(tmp_path / "x"), times=(0, 0))
        deadline = time.monotonic() + 60
        while lease_path(tmp_path / "x").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_replaced_owner_leaves_the_new_lease_alone(tmp_path, monkeypatch):
    """A process that was suspended for too long no longer touches or removes the lease."""
    target = tmp_path / "x"
    suspended = lease_of_another_machine(monkeypatch, target, beat=0.02)
    lease_path(target).write_text("third/1 7 taken over by a third")
    before = lease_path(target).stat().st_mtime_ns
    time.sleep(0.1)
    suspended.__exit__(None, None, None)
    assert lease_path(target).stat().st_mtime_ns == before


def test_leases_and_partial_files_of_dead_local_processes_are_removed_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    target = tmp_path / "[1].x"  # a name with glob characters
    lease_path(target).write_text(f"{leases_module.HOST_ID} {process.pid} 0123")
    half, unrelated = (tmp_path / f".{target.name}.{pid}-00.tmp" for pid in (process.pid, 1))
    half.touch()
    unrelated.touch()
    with Leases().acquire(target) as mine:
        assert mine and lease_path(target).read_text().split()[1] == str(os.getpid())
    assert list(tmp_path.iterdir()) == [unrelated]


def test_the_lease_of_a_process_killed_after_its_work_is_removed(folder):
    encode_shards(folder, LengthEncoder(), 60, progress=False)
    sidecars = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lease_path(sidecars[0]).write_text(f"{leases_module.HOST_ID} {dead.pid} 0")
    lease_path(sidecars[1]).write_text("another machine 1 0")  # that process may be alive
    assert encode_shards(folder, LengthEncoder(), 60, progress=False) == 0
    assert not lease_path(sidecars[0]).exists() and lease_path(sidecars[1]).exists()


def test_an_empty_lease_has_an_unknown_owner(tmp_path):
    lease_path(tmp_path / "x").touch()
    observer = Leases(beat=0.05)
    with observer.acquire(tmp_path / "x") as mine:
        assert not mine
    time.sleep(0.1)
    with observer.acquire(tmp_path / "x") as mine:
        assert mine


def test_an_error_releases_the_lease(folder):
    class Broken(LengthEncoder):
        def encode(self, captions):
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        encode_shards(folder, Broken(), progress=False)
    assert hidden_files(folder) == []


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*claim"), Leases().acquire(tmp_path / "absent" / "x"):
        pass


def test_equal_process_numbers_on_two_machines_do_not_share_a_temporary_file(folder):
    """In containers, the first process always has id 1. Here one writes while the other starts."""
    from imagen.files import replacing

    path = sidecar_path(folder / "00000.tar", LongText())
    with replacing(path) as mine:
        mine.write_bytes(b"mine")
        with replacing(path) as hidden_files:
            hidden_files.write_bytes(b"theirs")
        assert (mine.read_bytes(), path.read_bytes()) == (b"mine", b"theirs")
    assert path.read_bytes() == b"mine"
    assert index_shard(folder / "00000.tar").exists()
