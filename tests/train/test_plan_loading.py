"""`imagen plan` counts the loader."""

import json

import pytest

from imagen.cli.plan import show
from imagen.errors import UserError
from imagen.presets import preset
from imagen.train.experiment import override
from imagen.train.plan.loading import estimate_loading, measure_loading


def experiment(*fields):
    return override(preset("debug_64"), ["--data.workers", "4", *fields])


def test_the_rate_falls_with_the_size_of_stored_images():
    """0.5 ms, and 6 ms per megapixel: 72.5 ms for an image of a camera."""
    camera = estimate_loading(experiment(), 2, 12.0)
    assert camera.per_process == pytest.approx(1000 / 72.5)
    assert camera.images_per_s == pytest.approx(2 * 4 * 1000 / 72.5) and not camera.measured
    reduced = estimate_loading(experiment(), 1)
    assert reduced.megapixels == pytest.approx(1.5 * 64 * 64 / 1e6)
    assert reduced.per_process == pytest.approx(1000 / (0.5 + 6 * 0.006144))
    alone = estimate_loading(experiment("--data.workers", "0"), 1, 12.0)
    assert alone.images_per_s == alone.per_process
    with pytest.raises(UserError, match="--megapixels is 0; it must be above 0"):
        estimate_loading(experiment(), 1, 0)


def test_a_measured_rate(artifacts):
    loading = measure_loading(experiment(), 3, artifacts / "shards", seconds=0.05)
    assert loading.measured and loading.samples and loading.per_process > 0
    assert loading.images_per_s == pytest.approx(3 * 4 * loading.per_process)


def test_the_plan_says_that_the_gpus_wait(imagen, error_of, capsys, tmp_path):
    plan = ("plan", "debug_64", "--gpu", "rtx-4090", "--data.workers", 1, "--train.batch_size", 2)
    found = json.loads(imagen(*plan, "--megapixels", 12, "--json"))
    assert found["bound_by"] == "loading" and found["loading"]["workers"] == 1
    assert found["images_per_s"] == pytest.approx(1000 / 72.5) and found["step_s"] == pytest.approx(2 * 72.5 / 1000)
    assert found["training_images_per_s"] > 100 and found["disk"]["picture"] == pytest.approx(0.4 * 12e6, rel=0.01)
    show(found)
    shown = capsys.readouterr().out
    assert "14 each of images of 12 megapixels" in shown and "the GPUs wait for the loader" in shown
    assert "imagen data build SOURCE --out SHARDS --sizes 64\n" in shown
    assert "does not exist" in error_of(*plan, "--data", tmp_path / "none")
