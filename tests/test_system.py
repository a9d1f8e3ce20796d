"""Test locks, memory and signals, and the package without the modules that Windows lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen import system

# Modules and names that Windows lacks. Blocking them is no test on Windows, but finds every import and use.
WITHOUT = """
import signal, sys
try:
    import psutil  # has its own code for Windows, which is not run here
except ImportError:
    pass
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
import torch
torch.set_num_threads(1)
"""


def test_one_process_holds_a_lock_and_its_end_releases_it(tmp_path):
    held = (
        "import sys; from imagen import system\n"
        f"file = open({str(tmp_path / 'lock')!r}, 'a')\n"
        "print(system.lock(file), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with open(tmp_path / "lock", "a") as file:
            assert not system.lock(file)
        other.kill()
        other.wait()
        with open(tmp_path / "lock", "a") as file:
            assert system.lock(file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("shared", [False, True])
def test_a_forked_child_holds_the_lock_only_if_requested(tmp_path, shared):
    """Kill the parent while its child waits for the end of its input, which the test holds open."""
    program = f"""
import os, sys
from imagen import system
file = open({str(tmp_path / "lock")!r}, "a")
assert system.lock(file, shared_with_forks={shared})
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:
        parent.wait()
        with open(tmp_path / "lock", "a") as file:
            assert system.lock(file, shared_with_forks=shared) != shared
        parent.stdin.close()


def test_processes_and_memory():
    assert system.is_alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        other.wait()
    assert not system.is_alive(other.pid)
    assert system.peak_resident_bytes() > 2**20


def test_training_building_and_sampling_work_without_modules_that_windows_lacks(artifacts: Path, tmp_path: Path):
    program = f"""
{WITHOUT}
from imagen.cli import main
from pathlib import Path

def run(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code, (arguments, end.code)

artifacts, out = Path({str(artifacts)!r}), Path({str(tmp_path)!r})
source = out / "source"
source.mkdir()
from PIL import Image
for i in range(2):
    Image.effect_noise((64, 64), 50).convert("RGB").save(source / f"{{i}}.png")
    (source / f"{{i}}.txt").write_text(f"caption {{i}}")
quick = ["--data.workers", "1", "--train.batch_size", "2", "--train.gap_samples", "2", "--train.sample_every", "0"]
run("data", "build", source, "--out", out / "shards", "--workers", "1")
run("data", "encode", out / "shards")
run("train", "debug_64", "--data", out / "shards", "--out", out / "run", "--train.steps", "2", *quick)
run("sample", artifacts / "cascade", "a cat", "--out", out / "pictures", "--steps", "2", "--stages", "1")
assert (out / "pictures" / "0000.png").exists()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
