"""Test the callbacks of `examples/callback.py`: early stopping, and an additional metric."""

import dataclasses
import runpy
from pathlib import Path

import pytest
from toy import experiment, train_quietly

from imagen.train.config import OptimConfig

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "callback.py"))


def test_early_stopping(shards, tmp_path):
    """The learning rate is so small that no weight changes, and all measurements of the loss are equal."""
    stopping = EXAMPLE["EarlyStopping"](patience=2)
    what = experiment(steps=20, gap_every=2, optim=OptimConfig(lr=1e-30, warmup_steps=1))
    ended = train_quietly(what, shards, tmp_path, callbacks=[stopping])
    assert (stopping.worse, ended.finished) == (2, False)
    assert ended.step == 7  # measured at 2, 4 and 6; all ranks stop after the next step
    assert ended.reason == "the validation loss has not fallen in 2 measurements"


def test_no_stop_while_the_loss_falls(shards, tmp_path):
    stopping = EXAMPLE["EarlyStopping"](patience=1)
    assert train_quietly(experiment(steps=12, gap_every=6), shards, tmp_path, callbacks=[stopping]).finished
    assert (stopping.worse, stopping.best < 10) == (0, True)


@pytest.mark.parametrize(("clip_norm", "clipped"), [(1e-9, 1.0), (1e9, 0.0)])
def test_clipping_is_in_every_row(shards, tmp_path, rows, clip_norm, clipped):
    what = experiment(steps=4, log_every=2)
    what = dataclasses.replace(what, optim=dataclasses.replace(what.optim, clip_norm=clip_norm))
    train_quietly(what, shards, tmp_path, callbacks=[EXAMPLE["Clipping"]()])
    assert [(row["step"], row["clipped"]) for row in rows(tmp_path)] == [(2, clipped), (4, clipped)]
