import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import experiment, train_quietly

from imagen.errors import UserError
from imagen.train.callbacks import Callback
from imagen.train.meter import Meter
from imagen.train.rundir import open_run
from imagen.train.step import StepResult


def test_meter_means():
    meter = Meter()
    meter.add(StepResult([1.0, 2.0, 6.0, 4.0], [0.5] * 4, [0.0, 0.24, 0.5, 1.0], 3.0, 1, False, None))
    meter.add(StepResult([5.0, 0.0], [2.0] * 2, [0.1, 0.99], 1.0, 0, False, None))
    meter.add(StepResult([float("nan")], [0.0], [0.5], 9.0, 0, False, "the loss is not finite for x"))
    meter.add(StepResult([1.0], [0.0], [0.5], float("inf"), 0, False, None, overflowed=True))
    assert meter.row() == {
        "loss": 3.0,
        "eps_mse": 1.0,
        "grad_norm": 2.0,
        "loss_t0": pytest.approx(8 / 3),
        "loss_t2": 6.0,
        "loss_t3": 2.0,
        "nonfinite": 1,
        "bad_samples": 1,
    }


def test_run_writes_strict_json_and_tensorboard(shards, tmp_path):
    class Sheet(Callback):
        every = 0

        def on_interval(self, run, step):
            run.log_image("samples", torch.zeros(3, 8, 8, dtype=torch.uint8))

    train_quietly(experiment(steps=6), shards, tmp_path, callbacks=[Sheet()])

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    for row in rows:
        assert {"step", "loss", "grad_norm", "lr", "images"} <= row.keys()
        assert {"images_per_s", "data_wait", "memory_gb", "eta_s"} <= row.keys()
        assert {f"loss_t{i}" for i in range(4)} <= row.keys()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(r["step"], pytest.approx(r["loss"])) for r in rows]
    assert [e.step for e in events.Scalars("conditional_gap")] == [6]
    assert [e.step for e in events.Images("samples")] == [6]


def test_config_of_an_older_version_may_lack_a_field(tmp_path):
    reported = []
    open_run(tmp_path, {"train": {"seed": 0}, "levels": [1, 2]})
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    open_run(tmp_path, {"train": {"seed": 0, "new": 5}, "levels": (1, 2)}, reported.append)
    assert len(reported) == 1 and "train.new = 5" in reported[0]
    with pytest.raises(UserError, match=r"levels\[1\] = 2, not 3"):
        open_run(tmp_path, {"train": {"seed": 0, "new": 5}, "levels": (1, 3)})


def test_changes_of_the_learning_rate_are_allowed_and_reported(tmp_path):
    reported = []
    open_run(tmp_path, {"optim": {"lr": 1e-3, "schedule": "constant", "clip_norm": 1.0}})
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    now = {"optim": {"lr": 1e-3, "schedule": "cosine", "clip_norm": 1.0}}
    assert open_run(tmp_path, now, reported.append) == now
    assert reported == [f'{tmp_path}: optim.schedule changes from "constant" to "cosine"']
    with pytest.raises(UserError, match=r"optim.clip_norm = 1.0, not 2.0"):
        open_run(tmp_path, {"optim": {**now["optim"], "clip_norm": 2.0}})


def test_config_may_change_before_the_first_checkpoint(tmp_path):
    open_run(tmp_path, {"seed": 0})
    assert open_run(tmp_path, {"seed": 1}) == {"seed": 1} == json.loads((tmp_path / "config.json").read_text())
