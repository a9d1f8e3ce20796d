"""`imagen train` on what it must not touch, on full disks and on devices."""

import re
import subprocess
import sys

import pytest
import torch
from damage import files, largest_file

from imagen.train import export


def test_a_run_of_another_config_or_a_file(made, copy, mistake, quick, tmp_path):
    run = copy("base")
    before = files(run)
    train = ["train", "debug_64", "--data", made / "shards", *quick, "--train.steps", 4]
    assert "was started with train.seed = 0, not 5" in mistake(*train, "--out", run, "--train.seed", 5)
    assert "was started with" in mistake("train", "debug_256", "--data", made / "shards", "--out", run, *quick)
    assert files(run) == before
    (tmp_path / "file").touch()
    assert "is not a folder; choose another folder" in mistake(*train, "--out", tmp_path / "file")


def test_two_processes_in_one_run(made, copy, mistake, quick):
    run = copy("base")
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        said = mistake("train", "debug_64", "--data", made / "shards", "--out", run, *quick, "--train.steps", 8)
        holder.communicate("\n")
    assert "another process is training in" in said


@pytest.mark.parametrize("limit, what", [(100_000, "checkpoints"), (8_000_000, "export")])
def test_a_disk_that_is_full_while_training(made, copy, mistake, imagen, quick, monkeypatch, limit, what):
    """The checkpoint is larger than the export: for that one the limit is set when its turn comes."""
    run = copy("base")
    before = files(run)
    train = ["train", "debug_64", "--data", made / "shards", "--out", run, *quick, "--train.steps", 8]
    if what == "checkpoints":
        monkeypatch.setattr(export, "export_stage", lambda *_, **__: None)  # it would fail first: checkpoints take time
        with largest_file(limit):
            said = mistake(*train)
        monkeypatch.undo()
    else:
        original = export.export_stage

        def export_stage(*arguments, **options):
            with largest_file(100_000):
                original(*arguments, **options)

        monkeypatch.setattr(export, "export_stage", export_stage)
        said = mistake(*train)
        monkeypatch.undo()
    assert re.search(rf"cannot write {run}/{what}/.*: .*File too large.*; free some space", said)
    after = files(run)
    kept = [name for name in before if what in name]
    assert kept and {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not [name for name in after if name.endswith((".tmp", "-new"))]
    assert "all 8 steps are done" in imagen(*train)  # when there is space again


def test_devices(made, mistake, tmp_path):
    sample = ["sample", made / "base", "cat", "--out", tmp_path / "o", "--device"]
    for name in ("nonsense", "cuda:99", "meta", "cpu:x"):
        assert re.search(
            rf"--device {name}: (no such device|not available here); this machine has cpu", mistake(*sample, name)
        )
    if not torch.cuda.is_available():
        train = ["train", "debug_64", "--data", made / "shards", "--out", tmp_path / "r"]
        assert "--device cuda: not available here" in mistake(*train, "--device", "cuda")
    assert not (tmp_path / "o").exists() and not (tmp_path / "r").exists()
