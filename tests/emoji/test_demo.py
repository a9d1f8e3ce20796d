"""The demo, on a handful of objects and for seconds: that it goes through, goes on, and reports what it saw."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import imagen.emoji.demo as demo_module
from imagen.emoji.demo import budget as budget_module
from imagen.emoji.demo import run_demo
from imagen.emoji.demo.budget import FEWEST, MOST, choose_budget
from imagen.emoji.demo.drawing import SampledImages, prompts_for, sample_images, scores, truth
from imagen.errors import UserError
from imagen.presets import preset
from imagen.train.throughput import Throughput


def run(out: Path, said: list[str], **options):
    options = {"minutes": 0.02, "objects": 4, "prompts": 3, "pretrained": False, **options}
    return run_demo(out, **options, device="cpu", say=said.append)


def test_demo_runs_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    first = run(tmp_path / "demo", said)
    second = run(tmp_path / "demo", said)

    assert second["images"] > first["images"] > 0
    assert [row["images"] for row in second["history"]] == [first["images"], second["images"]]
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == second
    assert len(second["prompts"]) == 3
    rows = second["prompts"]
    assert second["colour_accuracy"] == sum(row["wanted"] == row["found"] for row in rows) / 3
    assert second["object_accuracy"] == sum(row["object"] for row in rows) / 3
    page = (tmp_path / "demo" / "index.html").read_text()
    assert all(row["prompt"] in page for row in rows)
    assert page.count("data:image/png;base64,") == 3 * 3 + 3 + 3  # before, after and real; at 64; at 256
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 1000
    assert any("going on" in line for line in said)
    assert sum(line.startswith("plan for 0.02 minutes: 4 objects") for line in said) == 2


def test_ctrl_c_in_the_training_ends_it_and_draws(tmp_path: Path) -> None:
    said: list[str] = []

    class Interrupting(list):
        def append(self, line: str) -> None:
            said.append(line)
            if line.startswith("step 1:"):  # of the base
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    summary = run(tmp_path / "demo", Interrupting(), minutes=30)
    assert time.monotonic() - began < 600  # nothing like half an hour
    assert any("stopped by SIGINT" in line for line in said) and not any(line.startswith("3/4") for line in said)
    assert any("the training was interrupted" in line for line in said)
    assert len(summary["prompts"]) == 3 and summary["sr_images"] == 0
    assert (tmp_path / "demo" / "sheet.png").exists() and (tmp_path / "demo" / "index.html").exists()


def test_a_stage_that_fails_does_not_take_the_pictures_of_the_other(tmp_path: Path, monkeypatch) -> None:
    train_run = demo_module.train_run

    def failing(experiment, *args, **options):
        if experiment.stage.low_resolution is not None:
            raise UserError("cannot write there")
        return train_run(experiment, *args, **options)

    monkeypatch.setattr(demo_module, "train_run", failing)
    said: list[str] = []
    with pytest.raises(UserError, match="cannot write there"):
        run(tmp_path / "demo", said)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert len(summary["prompts"]) == 3 and summary["sr_images"] == 0
    assert (tmp_path / "demo" / "sheet.png").exists() and (tmp_path / "demo" / "index.html").exists()


def test_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes 0"):
        run_demo(tmp_path / "demo", minutes=0)
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def planned(monkeypatch):
    """The budget of a machine of which the base's speed is given."""

    def make(images_per_s: float, minutes: float = 10, **options):
        monkeypatch.setattr(
            budget_module,
            "measure_throughput",
            lambda *_, **__: Throughput(32 / images_per_s, images_per_s, 2 * images_per_s),
        )
        return choose_budget(minutes, preset("emoji_mini_64"), preset("emoji_256"), torch.device("cpu"), **options)

    return make


def test_faster_machines_learn_more_objects(planned) -> None:
    counts = [planned(speed).objects for speed in (2, 35, 100, 10_000)]
    assert counts[0] == FEWEST and counts[-1] == MOST and counts == sorted(counts)
    assert 8 <= counts[1] <= 16  # two AVX2 cores: what was measured to be learned in ten minutes
    assert planned(35, objects=20).objects == 20


@pytest.mark.parametrize("speed", [20, 35, 100, 400])
def test_the_plan_fits_into_its_time(planned, speed: float) -> None:
    budget = planned(speed)
    base, sr = budget.training(600 - budget.data)
    assert budget.data + base + sr + budget.drawing == pytest.approx(600)
    assert base * speed >= 0.9 * budget_module.LOOKS * budget.objects or budget.objects == FEWEST


def test_a_tiny_budget_still_trains(planned) -> None:
    base, sr = planned(35, minutes=0.1).training(6)
    assert base > 0 and sr > 0


def test_prompts_come_in_other_words_once_all_objects_were_asked_for(planned) -> None:
    asked = prompts_for(planned(35, objects=4, prompts=10))
    assert len({each.object for each in asked[:4]}) == 4 and len({each.prompt for each in asked}) == 10
    assert [each.object for each in asked[4:8]] == [each.object for each in asked[:4]]
    assert len(prompts_for(planned(35, objects=4, prompts=100))) == 16


def test_real_drawings_are_right_by_the_demos_own_judge(planned) -> None:
    budget = planned(35, objects=12, prompts=12)
    asked = prompts_for(budget)
    judged = scores(SampledImages(asked, truth(asked, budget.objects)))
    assert sum(score.all for score, _ in judged) >= 11
    # Each prompt with the drawing of the next one: object and background are wrong.
    wrong = scores(SampledImages(asked, truth(asked[1:] + asked[:1], budget.objects)))
    assert not any(score.object for score, _ in wrong)


def test_drawing_stops_in_time_but_never_draws_nothing(artifacts: Path, planned) -> None:
    from imagen.cascade import Cascade

    asked = prompts_for(planned(35, objects=8, prompts=24))
    cascade = Cascade.load(artifacts / "cascade")
    drawn = sample_images(cascade, asked, shown=2, device=torch.device("cpu"), seconds=0)
    assert len(drawn.small) == len(drawn.prompts) == 16 and len(drawn.large) == 1
    assert sample_images(None, asked, device=torch.device("cpu")) is None
