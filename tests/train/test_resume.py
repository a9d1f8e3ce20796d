"""A run that is interrupted, in any way, ends as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import experiment, go

import imagen
from imagen.data.loader import DataConfig
from imagen.errors import UserError
from imagen.train import checkpoint
from imagen.train.optim import OptimConfig

TOY = str(Path(__file__).with_name("toy.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(imagen.__file__).parents[1])}


def final(run):
    return checkpoint.load(max((run / "checkpoints").glob("*.pt")))


def without_config(run):
    return {name: value for name, value in final(run).items() if name != "config"}


def assert_same(a, b):
    """Equal bit for bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def stopping_at(step):
    """A `say` that asks for a stop as soon as a row of that step was logged."""

    def say(line):
        if line.startswith(f"step {step}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    return say


def test_muon_resumes_exactly(shards, tmp_path, rows):
    what = experiment(steps=8, optim=OptimConfig(algorithm="muon", lr=1e-3, warmup_steps=4))
    assert go(what, shards, tmp_path / "whole").finished
    assert go(what, shards, tmp_path / "parts", say=stopping_at(3)).step == 3
    assert go(what, shards, tmp_path / "parts").finished
    assert_same(final(tmp_path / "parts"), final(tmp_path / "whole"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    assert go(experiment(), shards, run).finished
    return run


def test_sigterm_then_rerun_equals_uninterrupted(shards, tmp_path, rows, uninterrupted):
    what = experiment()
    first = go(what, shards, tmp_path, say=stopping_at(6))
    assert (first.step, first.finished) == (6, False) and "SIGTERM" in first.reason
    assert final(tmp_path)["progress"]["step"] == 6
    second = go(what, shards, tmp_path, minutes=0)  # a budget that is over at once buys one step
    assert (second.step, second.reason) == (7, "0 minutes are over")
    assert go(what, shards, tmp_path).finished
    assert rows(tmp_path) == rows(uninterrupted)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 12, 15, 18, 20]
    assert "conditional_gap" in rows(tmp_path)[1] and "conditional_gap" not in rows(tmp_path)[0]
    assert_same(final(tmp_path), final(uninterrupted))


def test_going_on_from_an_older_checkpoint_rewrites_the_same_metrics(shards, tmp_path, rows, uninterrupted):
    what = experiment(checkpoint_every=4)  # 16 lies between two logged steps: the sums of the meter have to survive
    go(what, shards, tmp_path)
    (tmp_path / "checkpoints" / "step-00000020.pt").unlink()  # as if killed between the last log and the checkpoint
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 21, "lo')  # and while writing
    said = []
    go(what, shards, tmp_path, say=said.append)
    assert any("going on from step 16" in line for line in said)
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(without_config(tmp_path), without_config(uninterrupted))


def test_kill_9_at_a_random_moment(shards, tmp_path, rows, uninterrupted):
    command = [sys.executable, TOY, str(shards), str(tmp_path), "20", "1"]
    metrics = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
    done = subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "all steps are done" in done.stdout
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(without_config(tmp_path), without_config(uninterrupted))


def test_sigterm_to_a_process_ends_it_cleanly(shards, tmp_path):
    command = [sys.executable, TOY, str(shards), str(tmp_path), "100000", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        for line in process.stdout:
            if line.startswith("step 6/"):
                process.terminate()
                break
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "run the same command again to go on" in out and "stopped by SIGTERM" in out
    assert final(tmp_path)["progress"]["step"] >= 6


def test_damaged_last_checkpoint_falls_back(shards, tmp_path, rows, uninterrupted):
    what = experiment()
    go(what, shards, tmp_path)
    last = tmp_path / "checkpoints" / "step-00000020.pt"
    with open(last, "r+b") as file:  # one flipped byte inside a tensor: torch.load alone would not see it
        file.seek(last.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    said = []
    go(what, shards, tmp_path, say=said.append)
    assert any("step-00000020.pt is damaged" in line and "step-00000015.pt" in line for line in said)
    assert last.with_name("step-00000020.pt.damaged").exists()
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(final(tmp_path), final(uninterrupted))


def test_no_readable_checkpoint_is_an_error_and_nothing_is_lost(shards, tmp_path):
    what = experiment(steps=6)
    go(what, shards, tmp_path)
    paths = sorted((tmp_path / "checkpoints").glob("*.pt"))
    for path in paths:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        go(what, shards, tmp_path)
    assert sorted((tmp_path / "checkpoints").glob("*.pt")) == paths


def test_another_config_is_refused(shards, tmp_path):
    go(experiment(steps=2), shards, tmp_path)
    with pytest.raises(UserError, match=r"begun with optim\.lr = 0\.001, not 0\.002"):
        go(experiment(steps=2, optim=OptimConfig(lr=2e-3, warmup_steps=4)), shards, tmp_path)
    with pytest.raises(UserError, match=r"train\.batch_size = 8, not 16"):
        go(experiment(steps=2, batch_size=16), shards, tmp_path)
    more = experiment(steps=4, log_every=1, checkpoint_every=1, gap_every=2, data=DataConfig(workers=1))
    assert go(more, shards, tmp_path).step == 4


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "step-00000001.pt"
    checkpoint.save(path, {"x": torch.zeros(10)})
    before = path.read_bytes()
    # A limit on the size of files fails a write halfway, as a full disk does.
    script = f"""
import resource, torch
from pathlib import Path
from imagen.errors import UserError
from imagen.train import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    checkpoint.save(Path({str(path)!r}), {{"x": torch.zeros(1 << 20)}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert f"cannot write {path}" in done.stdout, done.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_last_checkpoints_are_kept(shards, tmp_path):
    go(experiment(steps=6, checkpoint_every=1, keep_checkpoints=3), shards, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.pt", "step-00000005.pt", "step-00000006.pt"]


def test_a_second_process_is_refused(shards, tmp_path):
    what = experiment(steps=3, log_every=1)
    refused = []

    def say(line):
        if not refused:
            command = [sys.executable, TOY, str(shards), str(tmp_path), "3", "0"]
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
            refused.append(done.stderr)

    go(what, shards, tmp_path, say=say)
    assert "another process is training" in refused[0]
