"""Test `imagen train` with run folders that it must not change, full disks, and devices."""

import re
import subprocess
import sys

import pytest
import torch
from damage import max_file_size, read_files

from imagen.train import export


def test_a_run_of_another_config_or_a_file(artifacts, copy_artifact, error_of, quick_options, tmp_path):
    run = copy_artifact("base")
    before = read_files(run)
    train = ["train", "debug_64", "--data", artifacts / "shards", *quick_options, "--train.steps", 4]
    assert "was started with train.seed = 0, not 5" in error_of(*train, "--out", run, "--train.seed", 5)
    assert "was started with" in error_of(
        "train", "debug_256", "--data", artifacts / "shards", "--out", run, *quick_options
    )
    assert read_files(run) == before
    (tmp_path / "file").touch()
    assert "is not a folder; choose another folder" in error_of(*train, "--out", tmp_path / "file")


def test_two_processes_cannot_train_one_run(artifacts, copy_artifact, error_of, quick_options):
    run = copy_artifact("base")
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        error = error_of(
            "train", "debug_64", "--data", artifacts / "shards", "--out", run, *quick_options, "--train.steps", 8
        )
        holder.communicate("\n")
    assert "another process is training in" in error


@pytest.mark.parametrize("limit, written", [(100_000, "checkpoints"), (8_000_000, "export")])
def test_a_full_disk_while_training_is_a_user_error(
    artifacts, copy_artifact, error_of, imagen, quick_options, monkeypatch, limit, written
):
    """Checkpoints are larger than exports, so the limit for exports is set only while exporting."""
    run = copy_artifact("base")
    before = read_files(run)
    train = ["train", "debug_64", "--data", artifacts / "shards", "--out", run, *quick_options, "--train.steps", 8]
    if written == "checkpoints":
        monkeypatch.setattr(export, "export_stage", lambda *_, **__: None)  # it would fail first
        with max_file_size(limit):
            error = error_of(*train)
        monkeypatch.undo()
    else:
        original = export.export_stage

        def export_stage(*arguments, **options):
            with max_file_size(100_000):
                original(*arguments, **options)

        monkeypatch.setattr(export, "export_stage", export_stage)
        error = error_of(*train)
        monkeypatch.undo()
    assert re.search(rf"cannot write {run}/{written}/.*: .*File too large.*; free some space", error)
    after = read_files(run)
    old_names = [name for name in before if written in name]
    assert old_names and {name: after[name] for name in old_names} == {name: before[name] for name in old_names}
    assert not [name for name in after if name.endswith((".tmp", "-new"))]
    assert "all 8 steps are done" in imagen(*train)  # once there is space again


def test_invalid_devices_are_rejected(artifacts, error_of, tmp_path):
    sample = ["sample", artifacts / "base", "cat", "--out", tmp_path / "o", "--device"]
    for name in ("nonsense", "cuda:99", "meta", "cpu:x"):
        assert re.search(
            rf"--device {name}: (no such device|not available here); this machine has cpu", error_of(*sample, name)
        )
    if not torch.cuda.is_available():
        train = ["train", "debug_64", "--data", artifacts / "shards", "--out", tmp_path / "r"]
        assert "--device cuda: not available here" in error_of(*train, "--device", "cuda")
    assert not (tmp_path / "o").exists() and not (tmp_path / "r").exists()
