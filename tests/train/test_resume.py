"""Test that an interrupted run ends with the same result as an uninterrupted one."""

import dataclasses
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from run_state import assert_same, last_checkpoint, last_checkpoint_without_config
from toy import ENVIRONMENT, TOY, experiment, stopping_at, train_quietly

from imagen.data.loading.config import DataConfig
from imagen.errors import UserError
from imagen.train import checkpoint
from imagen.train.checkpoint import CheckpointFolder, checkpoint_paths
from imagen.train.config import OptimConfig
from imagen.train.posthoc import snapshots

STEPS = 11  # with a line at every third and a checkpoint at every fifth


def test_muon_resumes_exactly(shards, tmp_path, rows):
    what = experiment(steps=8, optim=OptimConfig(algorithm="muon", lr=1e-3, warmup_steps=4))
    assert train_quietly(what, shards, tmp_path / "whole").finished
    assert train_quietly(what, shards, tmp_path / "parts", report=stopping_at(3)).step == 4
    assert train_quietly(what, shards, tmp_path / "parts").finished
    assert_same(last_checkpoint(tmp_path / "parts"), last_checkpoint(tmp_path / "whole"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted")
    assert train_quietly(experiment(steps=STEPS), shards, run).finished
    return run


def test_sigterm_then_rerun_equals_uninterrupted(shards, tmp_path, rows, uninterrupted):
    what = experiment(steps=STEPS)
    first = train_quietly(what, shards, tmp_path, report=stopping_at(6))
    assert (first.step, first.finished) == (7, False) and "SIGTERM" in first.reason
    assert last_checkpoint(tmp_path)["progress"]["step"] == 7
    second = train_quietly(what, shards, tmp_path, minutes=0)  # an exhausted budget still allows one step
    assert (second.step, second.reason) == (8, "the time budget of 0 minutes is used up")
    assert train_quietly(what, shards, tmp_path).finished
    assert rows(tmp_path) == rows(uninterrupted)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 11]
    assert "conditional_gap" in rows(tmp_path)[1] and "conditional_gap" not in rows(tmp_path)[0]
    assert_same(last_checkpoint(tmp_path), last_checkpoint(uninterrupted))


def test_resuming_from_an_older_checkpoint_rewrites_the_same_metrics(shards, tmp_path, rows, uninterrupted):
    # Step 8 is between two logged steps, so its checkpoint must contain the meter's sums.
    what = experiment(steps=STEPS, checkpoint_every=4)
    train_quietly(what, shards, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000011")  # as if killed between the last log and the checkpoint
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "lo')  # and while writing
    reported = []
    train_quietly(what, shards, tmp_path, report=reported.append)
    assert any("resuming from step 8" in line for line in reported)
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(last_checkpoint_without_config(tmp_path), last_checkpoint_without_config(uninterrupted))


def test_kill_9_at_a_random_moment(shards, tmp_path, rows, uninterrupted):
    command = [sys.executable, TOY, str(shards), str(tmp_path), str(STEPS), "1"]
    metrics = tmp_path / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.15))
        process.kill()
    done = subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "all steps are done" in done.stdout
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(last_checkpoint_without_config(tmp_path), last_checkpoint_without_config(uninterrupted))


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
    assert "run the same command again to resume" in out and "stopped by SIGTERM" in out
    assert last_checkpoint(tmp_path)["progress"]["step"] >= 6


def flip_a_bit(path):
    """Flip a bit in the middle of a file, inside a tensor, where torch.load alone would not detect it."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


DAMAGES = {
    "a flipped bit": lambda path: flip_a_bit(path / "__0_0.distcp"),
    "a part that is cut off": lambda path: os.truncate(path / "__0_0.distcp", 5000),
    "a part that is gone": lambda path: (path / "__0_0.distcp").unlink(),
    "no account of the parts": lambda path: (path / ".metadata").unlink(),
    "truncated metadata": lambda path: os.truncate(path / ".metadata", 500),
    "code in place of the account": lambda path: (path / ".metadata").write_bytes(pickle.dumps(print)),
    "no state": lambda path: (path / "state.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_last_checkpoint_falls_back(shards, tmp_path, rows, uninterrupted, damage):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    last = tmp_path / "checkpoints" / "step-00000011"
    DAMAGES[damage](last)
    reported = []
    train_quietly(experiment(steps=STEPS), shards, tmp_path, report=reported.append)
    assert any("step-00000011 is damaged" in line and "step-00000010" in line for line in reported)
    assert last.with_name("step-00000011.damaged").exists()
    assert rows(tmp_path) == rows(uninterrupted)
    assert_same(last_checkpoint(tmp_path), last_checkpoint(uninterrupted))


def test_a_step_can_be_damaged_twice(shards, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    last = tmp_path / "checkpoints" / "step-00000011"
    for name in ("step-00000011.damaged", "step-00000011.damaged-2"):
        flip_a_bit(last / "__0_0.distcp")
        assert train_quietly(experiment(steps=STEPS), shards, tmp_path).step == STEPS
        assert last.with_name(name).is_dir() and last.is_dir()


def test_a_checkpoint_is_replaced_by_renaming(shards, tmp_path, uninterrupted, monkeypatch):
    """A kill while the old one is deleted would otherwise lose both."""
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    last = tmp_path / "checkpoints" / "step-00000011"
    deleted = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: deleted.append((path.name, last.is_dir())))
    assert train_quietly(experiment(steps=STEPS), shards, tmp_path).step == STEPS
    assert (".step-00000011.old.tmp", True) in deleted and (last.name, True) not in deleted
    assert_same(last_checkpoint(tmp_path), last_checkpoint(uninterrupted))


def test_a_start_that_fails_leaves_no_status(shards, tmp_path):
    """`runs/slurm.sh` requeues a job whose status says that it is not finished."""
    train_quietly(experiment(steps=2), shards, tmp_path)
    shutil.rmtree(last := checkpoint_paths(tmp_path / "checkpoints")[-1])
    last.mkdir()
    with pytest.raises(UserError, match="checkpoints"):
        train_quietly(experiment(steps=4), shards, tmp_path)
    assert not (tmp_path / "status.json").exists()


def test_emas_do_not_depend_on_interruptions(shards, tmp_path):
    """With `ema_every` 4: stopped at step 3, and with checkpoints between updates."""
    what = experiment(steps=9, ema_every=4, log_every=1, checkpoint_every=0)
    train_quietly(what, shards, tmp_path / "whole")
    often = dataclasses.replace(what, train=dataclasses.replace(what.train, checkpoint_every=2))
    assert train_quietly(often, shards, tmp_path / "parts", report=stopping_at(2)).step == 3
    train_quietly(often, shards, tmp_path / "parts")
    assert_same(last_checkpoint_without_config(tmp_path / "parts"), last_checkpoint_without_config(tmp_path / "whole"))


def test_snapshots_of_a_deleted_run_are_forgotten(shards, tmp_path):
    what = experiment(steps=4, ema_sigma_rels=(0.05, 0.1), ema_snapshot_every=2)
    train_quietly(what, shards, tmp_path)
    assert {snapshot.step for snapshot in snapshots(tmp_path / "averages", "sigma_rel")} == {2, 4}
    shutil.rmtree(tmp_path / "checkpoints")
    train_quietly(experiment(steps=2, ema_sigma_rels=(0.05, 0.1), ema_snapshot_every=1, seed=1), shards, tmp_path)
    assert {snapshot.step for snapshot in snapshots(tmp_path / "averages", "sigma_rel")} == {1, 2}


def test_no_readable_checkpoint_is_an_error_and_nothing_is_lost(shards, tmp_path):
    what = experiment(steps=6)
    train_quietly(what, shards, tmp_path)
    paths = checkpoint_paths(tmp_path / "checkpoints")
    for path in paths:
        os.truncate(path / "__0_0.distcp", 5000)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        train_quietly(what, shards, tmp_path)
    assert checkpoint_paths(tmp_path / "checkpoints") == paths


def test_another_config_is_rejected(shards, tmp_path):
    train_quietly(experiment(steps=2), shards, tmp_path)
    with pytest.raises(UserError, match=r"started with optim\.clip_norm = 1\.0, not 2\.0"):
        train_quietly(experiment(steps=2, optim=OptimConfig(clip_norm=2.0, lr=1e-3, warmup_steps=4)), shards, tmp_path)
    with pytest.raises(UserError, match=r"train\.batch_size = 8, not 16"):
        train_quietly(experiment(steps=2, batch_size=16), shards, tmp_path)
    data = DataConfig(workers=1, max_bad=0.3)
    more = experiment(steps=4, log_every=1, checkpoint_every=1, gap_every=2, max_nonfinite=3, data=data)
    assert train_quietly(more, shards, tmp_path).step == 4


def test_other_data_are_accepted_and_reported(shards, tmp_path):
    moved, fewer = shutil.copytree(shards, tmp_path / "moved"), shutil.copytree(shards, tmp_path / "fewer")
    for file in (fewer / "train").glob("00002.*"):
        file.unlink()
    for data, is_reported in ((shards, False), (moved, False), (fewer, True), (fewer, False)):
        reported: list[str] = []
        steps = 1 + len(checkpoint_paths(tmp_path / "run" / "checkpoints"))
        train_quietly(experiment(steps=steps, keep_checkpoints=9), data, tmp_path / "run", report=reported.append)
        assert any("not the data of the previous steps" in line for line in reported) == is_reported


def test_full_disk_preserves_the_old_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(1, {"model": {"x": torch.arange(10.0)}}, {}, wait=True)
    # A limit on file size makes a write fail in the middle, like a full disk.
    script = f"""
import resource, torch
from pathlib import Path
from imagen.errors import UserError
from imagen.train.checkpoint import CheckpointFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
folder = CheckpointFolder(Path({str(tmp_path)!r}), keep=1)
folder.save(2, {{"model": {{"x": torch.zeros(1 << 20)}}}}, {{}})
try:
    folder.wait()
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert f"cannot write {tmp_path / 'step-00000002'}" in done.stdout and "File too large" in done.stdout, done.stderr
    assert folder.paths() == [tmp_path / "step-00000001"]
    assert torch.equal(checkpoint.read(tmp_path / "step-00000001", "model")["x"], torch.arange(10.0))
    folder.save(3, {"model": {"x": torch.zeros(10)}}, {}, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]  # no partial checkpoint remains


def test_the_last_and_every_nth_checkpoint_are_retained(shards, tmp_path):
    train_quietly(experiment(steps=9, checkpoint_every=1, keep_checkpoints=2, keep_every=3), shards, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-0000000{step}" for step in (3, 6, 8, 9)]


def test_a_second_process_is_rejected(shards, tmp_path):
    what = experiment(steps=3, log_every=1)
    refused = []

    def report(line):
        if not refused:
            command = [sys.executable, TOY, str(shards), str(tmp_path), "3", "0"]
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
            refused.append(done.stderr)

    train_quietly(what, shards, tmp_path, report=report)
    assert "another process is training" in refused[0]


@pytest.fixture(scope="module")
def two_steps(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("two_steps")
    train_quietly(experiment(steps=2), shards, run)
    return run


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("progress", 5, "it must be an object|it must be"),
        ("progress", None, "it must be"),
        ("progress.step", "two", "step is 'two'; it must be a whole number"),
        ("progress.step", -1, "step is -1; it must be at least 0"),
        ("progress.step", 10**15, "step is 1,000,000,000,000,000; it must be"),
        ("progress.meter", [], r"meter is \[\]; it must be an object|it must be an object"),
        ("progress.meter.loss", "much", "meter.loss is 'much'; it must be a finite number"),
        ("progress.meter.bucket_loss", 3, "meter.bucket_loss is 3; it must be a list"),
        ("progress.meter.bucket_loss", [1.0], "meter.bucket_loss has 1 numbers; it must have 4"),
        ("progress.meter.bucket_images", [0, 0, 0, {}], r"meter.bucket_images\[3\] is {}; it must be a whole number"),
        ("progress.loss_scale.active", "yes", "loss_scale.active is 'yes'; it must be true or false"),
        ("progress.surprise", 1, "unknown field 'surprise'"),
    ],
)
def test_an_edited_state_is_rejected(shards, tmp_path, two_steps, path, value, message):
    shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "checkpoints").glob("*/state.json")
    state = inner = json.loads(file.read_text())
    *outer, last = path.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value
    file.write_text(json.dumps(state))
    with pytest.raises(UserError, match=message) as caught:
        train_quietly(experiment(steps=2), shards, tmp_path)
    assert "state.json" in str(caught.value)
