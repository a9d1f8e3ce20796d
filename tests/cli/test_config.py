"""Test `imagen presets`, `imagen config` and invalid field values."""

import json

import pytest

from imagen import presets


def test_presets_and_config_are_printed(imagen, monkeypatch):
    # Describing all presets takes seconds.
    monkeypatch.setattr(presets, "PRESETS", {"debug_256": presets.PRESETS["debug_256"]})
    assert "debug_256" in imagen("presets")
    rows = json.loads(imagen("presets", "--json"))
    assert all({"name", "parameters", "resolution", "gflop"} <= row.keys() for row in rows)
    shown = json.loads(imagen("config", "--train.steps", "1e2", "debug_256", "--optim.lr=1"))
    assert (shown["train"]["steps"], shown["optim"]["lr"]) == (100, 1.0)


@pytest.mark.parametrize(
    "field, value",
    [
        *(("optim.lr", "-1"), ("optim.lr", "NaN"), ("optim.betas", "[0.9, 1]"), ("optim.eps", "0")),
        *(("optim.weight_decay", "-1"), ("optim.warmup_steps", "-1"), ("optim.clip_norm", "0")),
        *(("train.steps", "0"), ("train.batch_size", "0"), ("train.micro_batch", "0"), ("train.ema_decay", "1.5")),
        *(("train.text_dropout", "2"), ("train.seed", "-1"), ("train.log_every", "-1"), ("train.gap_samples", "0")),
        *(("train.keep_checkpoints", "0"), ("train.max_nonfinite", "0"), ("train.precision", "fp8")),
        *(("data.crop", "30"), ("data.crop", "512"), ("data.crop", "0"), ("data.workers", "-1"), ("data.window", "0")),
        *(("data.max_bad", "2"), ("data.max_enlargement", "0"), ("text.max_tokens", "0"), ("text.width", "0")),
        *(("stage.resolution", "0"), ("stage.resolution", "252"), ("stage.low_resolution", "48")),
        *(("stage.low_resolution", "null"), ("stage.schedule.logsnr_min", "40"), ("stage.objective.p2_k", "0")),
        *(("stage.sampling.steps", "0"), ("stage.sampling.low_res_noise", "2"), ("stage.sampling.sampler", "dpm")),
        *(("stage.unet.levels.0.channels", "0"), ("stage.unet.levels", "[]"), ("stage.unet.dropout", "1")),
        *(("stage.unet.image_channels", "2"), ("stage.unet.text_width", "100"), ("text", "null")),
        *(("stage.unet.head_channels", "0"), ("stage.unet.time_width", "0"), ("stage.unet.patch", "3")),
    ],
)
def test_values_out_of_range_are_rejected_with_their_name(artifacts, error_of, tmp_path, field, value):
    out = tmp_path / "run"
    error = error_of("train", "debug_256", "--data", artifacts / "shards", "--out", out, f"--{field}", value)
    names = {"stage.unet.patch": "stage.resolution", "text": "stage.unet.text_width"}
    last = names.get(field, field).rsplit(".", 1)[-1]
    assert (last in error and "stage.unet.levels" not in field) or "level" in error
    assert not out.exists()


def test_a_batch_size_that_does_not_divide_is_rejected(imagen, error_of, tmp_path):
    fields = ["--train.micro_batch", 3]
    command = ["train", "debug_64", "--data", tmp_path, "--out", tmp_path / "run", *fields]
    error = error_of(*command)
    assert "train.batch_size 8 gives each rank 8 samples, which do not divide into micro-batches of 3" in error
    assert json.loads(imagen("config", "debug_64", *fields))  # the number of processes is not known yet


def test_a_batch_is_divided_among_all_processes(error_of, tmp_path, monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    command = ["train", "debug_64", "--data", tmp_path / "none", "--out", tmp_path / "run", "--train.batch_size", 12]
    assert "gives each rank 6 samples" in error_of(*command, "--train.micro_batch", 4)
    assert "batch" not in error_of(*command, "--train.micro_batch", 6)


def test_crops_of_a_network_with_coordinates_are_rejected(error_of):
    assert "stage.unet.coordinates is true" in error_of("config", "emoji_64", "--data.crop", 32)
