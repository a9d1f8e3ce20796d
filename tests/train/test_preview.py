"""`imagen train --dry-run`: the first steps are those of the run, and nothing is left behind."""

import json
import tempfile

import pytest
from ranks import run_on_ranks
from toy import experiment, train_quietly

from imagen.errors import UserError
from imagen.train import preview as module
from imagen.train.callbacks import Callback
from imagen.train.config import OptimConfig
from imagen.train.preview import preview
from imagen.train.ranks import Ranks, process_group


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_step(self, run, step, result):
        self.values.append(sum(result.losses) / len(result.losses))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, where none of ours may be left at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.glob("imagen-*")) == []  # others' files may lie there


def test_the_steps_are_those_of_training(shards, tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)
    losses = Losses()
    train_quietly(experiment(steps=20), shards, tmp_path / "run", callbacks=[losses])
    lines = []
    found = preview(experiment(steps=20), shards, tmp_path / "new", ranks=Ranks(), report=lines.append)
    assert found.steps == found.steps_left == 20 and len(lines) == 1
    assert found.first_step_s > 0 and found.images_per_s == pytest.approx(8 / found.step_s)
    assert found.total_s == pytest.approx(20 * max(found.step_s, 8 / found.loader_images_per_s))
    assert found.memory_gb > 0.05 and not (tmp_path / "new").exists()
    assert found.loss == pytest.approx(losses.values[2], abs=1e-6)


def test_steps_of_a_run_that_are_done_are_not_counted(shards, tmp_path, temporary):
    train_quietly(experiment(steps=5), shards, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    found = preview(experiment(steps=20), shards, tmp_path / "run", ranks=Ranks(), report=lambda line: None)
    assert (found.steps, found.steps_left) == (20, 15)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert preview(experiment(steps=5), shards, tmp_path / "run", report=lambda line: None).total_s == 0


def test_a_slow_loader_is_reported(shards, temporary):
    found = preview(experiment(), shards, report=lambda line: None)
    slow = module.Preview(**{**vars(found), "images_per_s": 100.0, "loader_images_per_s": 100.0})
    fast = module.Preview(**{**vars(found), "images_per_s": 100.0, "loader_images_per_s": 200.0})
    assert slow.waits and not fast.waits


def test_a_first_batch_that_takes_longer_than_the_measurement(monkeypatch):
    clock = iter(range(0, 1_000_000, 30))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert 0 < module.loader_rate(iter(range(1000)), size=8, workers=0) < 1


def test_a_loss_that_is_not_finite(shards, temporary):
    optim = OptimConfig(lr=1e6, warmup_steps=0, schedule="constant", clip_norm=1e30)
    with pytest.raises(UserError, match=r"step \d: the (loss|gradient) is not finite"):
        preview(experiment(optim=optim), shards, report=lambda line: None)


def on_ranks(shards, out):
    with process_group() as ranks:
        return vars(preview(experiment(), shards, out, ranks=ranks, report=lambda line: None))


def test_ranks_agree(shards, tmp_path):
    first, second = run_on_ranks(2, on_ranks, shards, tmp_path / "run")
    assert first == second and not (tmp_path / "run").exists()


def test_command(artifacts, imagen, error_of, quick_options, tmp_path, temporary):
    train = ("train", "debug_64", "--data", artifacts / "shards", *quick_options)
    shown = imagen(*train, "--dry-run", "--out", tmp_path / "run")
    for word in ("memory: ", "time: ", "loader: ", "total: about ", "nothing was written"):
        assert f"\n{word}" in shown or word in shown
    assert not (tmp_path / "run").exists()
    found = json.loads(imagen(*train, "--dry-run", "--json"))
    assert found["dry_run"] and found["steps_left"] == 100 and found["loader_images_per_s"] > 0
    assert "the following arguments are required: --out" in error_of(*train)
    assert "--minutes does not go with --dry-run" in error_of(*train, "--dry-run", "--minutes", 1)
    assert "does not exist" in error_of("train", "debug_64", "--data", tmp_path / "none", "--dry-run")
