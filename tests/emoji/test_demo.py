"""Test the demo with a few objects and seconds of training: it runs, resumes and reports its results."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import imagen.emoji.demo as demo_module
from imagen.emoji.demo import budget as budget_module
from imagen.emoji.demo import run_demo
from imagen.emoji.demo.budget import MAX_OBJECTS, MIN_OBJECTS, choose_budget
from imagen.emoji.demo.drawing import SampledImages, original_drawings, prompts_for, sample_images, scores
from imagen.emoji.presets import emoji_256, emoji_mini_64
from imagen.errors import UserError
from imagen.presets import preset
from imagen.presets.debug import debug_64, debug_256
from imagen.train.experiment import Experiment
from imagen.train.throughput import Throughput


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give both stages the networks of the debug presets, a few steps, and one image per object and background."""

    def with_network(full: Experiment, debug: Experiment) -> Experiment:
        sampling = replace(full.stage.sampling, steps=2)
        stage = replace(full.stage, unet=debug.stage.unet, sampling=sampling)
        return replace(full, stage=stage, text=debug.text, train=replace(full.train, batch_size=4))

    base, sr = with_network(emoji_mini_64(), debug_64()), with_network(emoji_256(), debug_256())
    monkeypatch.setattr(demo_module, "emoji_mini_64", lambda: base)
    monkeypatch.setattr(demo_module, "emoji_256", lambda: sr)
    monkeypatch.setattr(demo_module, "VARIANTS", 1)


def run(out: Path, lines: list[str], **options):
    options = {"minutes": 0.02, "objects": 4, "prompts": 3, "pretrained": False, **options}
    return run_demo(out, **options, device="cpu", report=lines.append)


@pytest.mark.usefixtures("small")
def test_demo_runs_and_resumes(tmp_path: Path) -> None:
    lines: list[str] = []
    first = run(tmp_path / "demo", lines)
    second = run(tmp_path / "demo", lines)

    assert second["images"] > first["images"] > 0
    assert [row["images"] for row in second["history"]] == [first["images"], second["images"]]
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == second
    assert len(second["prompts"]) == 3
    rows = second["prompts"]
    assert second["colour_accuracy"] == sum(row["wanted"] == row["found"] for row in rows) / 3
    assert second["object_accuracy"] == sum(row["object"] for row in rows) / 3
    page = (tmp_path / "demo" / "index.html").read_text()
    assert all(row["prompt"] in page for row in rows)
    assert page.count("data:image/png;base64,") == 3 * 3 + 3 + 3  # before, after and original; 64 pixels; 256 pixels
    assert (tmp_path / "demo" / "sheet.png").stat().st_size > 1000
    assert any("resuming" in line for line in lines)
    assert sum(line.startswith("plan for 0.02 minutes: 4 objects") for line in lines) == 2


@pytest.mark.usefixtures("small")
def test_ctrl_c_ends_training_and_samples(tmp_path: Path) -> None:
    lines: list[str] = []

    class Interrupting(list):
        def append(self, line: str) -> None:
            lines.append(line)
            if line.startswith("step 1:"):  # of the base model
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    start = time.monotonic()
    summary = run(tmp_path / "demo", Interrupting(), minutes=30)
    assert time.monotonic() - start < 600  # far less than 30 minutes
    assert any("stopped by SIGINT" in line for line in lines) and not any(line.startswith("3/4") for line in lines)
    assert any("training was interrupted" in line for line in lines)
    assert len(summary["prompts"]) == 3 and summary["sr_images"] == 0
    assert (tmp_path / "demo" / "sheet.png").exists() and (tmp_path / "demo" / "index.html").exists()


@pytest.mark.usefixtures("small")
def test_images_are_sampled_if_super_resolution_fails(tmp_path: Path, monkeypatch) -> None:
    train_run = demo_module.train_run

    def failing(experiment, *args, **options):
        if experiment.stage.low_resolution is not None:
            raise UserError("cannot write there")
        return train_run(experiment, *args, **options)

    monkeypatch.setattr(demo_module, "train_run", failing)
    lines: list[str] = []
    with pytest.raises(UserError, match="cannot write there"):
        run(tmp_path / "demo", lines)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert len(summary["prompts"]) == 3 and summary["sr_images"] == 0
    assert (tmp_path / "demo" / "sheet.png").exists() and (tmp_path / "demo" / "index.html").exists()


def test_zero_minutes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--minutes 0"):
        run_demo(tmp_path / "demo", minutes=0)
    assert not (tmp_path / "demo").exists()


@pytest.fixture(scope="module")
def gflop() -> dict[str, float]:
    """Return the GFLOP of an evaluation of each network of the demo, which take a second to count."""
    return {name: budget_module.gflop(preset(name)) for name in ("emoji_mini_64", "emoji_256")}


@pytest.fixture
def choose(monkeypatch, gflop):
    """Return a function that chooses the budget of a machine with a given throughput of the base."""
    monkeypatch.setattr(budget_module, "gflop", lambda experiment: gflop[experiment.name])

    def make(images_per_s: float, minutes: float = 10, **options):
        monkeypatch.setattr(
            budget_module,
            "measure_throughput",
            lambda *_, **__: Throughput(32 / images_per_s, images_per_s, 2 * images_per_s),
        )
        return choose_budget(minutes, preset("emoji_mini_64"), preset("emoji_256"), torch.device("cpu"), **options)

    return make


def test_faster_machines_learn_more_objects(choose) -> None:
    counts = [choose(speed).objects for speed in (2, 35, 100, 10_000)]
    assert counts[0] == MIN_OBJECTS and counts[-1] == MAX_OBJECTS and counts == sorted(counts)
    assert 8 <= counts[1] <= 16  # two AVX2 cores; measured to be learned in ten minutes
    assert choose(35, objects=20).objects == 20


@pytest.mark.parametrize("speed", [20, 35, 100, 400])
def test_budget_fits_into_the_time(choose, speed: float) -> None:
    budget = choose(speed)
    base, sr = budget.training(600 - budget.data)
    assert budget.data + base + sr + budget.sampling == pytest.approx(600)
    assert base * speed >= 0.9 * budget_module.VIEWS_PER_OBJECT * budget.objects or budget.objects == MIN_OBJECTS


def test_a_tiny_budget_still_trains(choose) -> None:
    base, sr = choose(35, minutes=0.1).training(6)
    assert base > 0 and sr > 0


def test_prompts_repeat_objects_in_other_wordings(choose) -> None:
    prompts = prompts_for(choose(35, objects=4, prompts=10))
    assert len({each.object for each in prompts[:4]}) == 4 and len({each.prompt for each in prompts}) == 10
    assert [each.object for each in prompts[4:8]] == [each.object for each in prompts[:4]]
    assert len(prompts_for(choose(35, objects=4, prompts=100))) == 16


def test_original_drawings_score_as_correct(choose) -> None:
    budget = choose(35, objects=12, prompts=12)
    prompts = prompts_for(budget)
    scored = scores(SampledImages(prompts, original_drawings(prompts, budget.objects)))
    assert sum(score.all for score, _ in scored) >= 11
    # With the drawing of the next prompt, object and background are wrong.
    wrong = scores(SampledImages(prompts, original_drawings(prompts[1:] + prompts[:1], budget.objects)))
    assert not any(score.object for score, _ in wrong)


def test_sampling_stops_in_time_after_the_first_batch(artifacts: Path, choose) -> None:
    from imagen.cascade import Cascade

    prompts = prompts_for(choose(35, objects=8, prompts=24))
    cascade = Cascade.load(artifacts / "cascade")
    sampled = sample_images(cascade, prompts, shown=2, device=torch.device("cpu"), seconds=0)
    assert len(sampled.small) == len(sampled.prompts) == 16 and len(sampled.large) == 1
    assert sample_images(None, prompts, device=torch.device("cpu")) is None
