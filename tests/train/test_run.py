"""Test the commands from data to images as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from imagen.pictures import read_metadata

PROMPTS = ["a red apple on a blue background", "an octopus"]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_the_documented_files(artifacts):
    for name, steps in (("base", [2, 4]), ("sr", [2])):
        run = artifacts / name
        metrics = rows(run)
        assert [row["step"] for row in metrics] == steps
        for row in metrics:
            assert {"step", "loss", "grad_norm", "images_per_s", "conditional_gap"} <= row.keys()
            assert all(np.isfinite(value) for value in row.values())
        assert json.loads((run / "config.json").read_text())["train"]["steps"] == steps[-1]
        assert (run / "samples" / f"step-{steps[-1]:08d}.png").exists()
        assert (run / "checkpoints" / f"step-{steps[-1]:08d}" / "state.json").exists()
        assert {path.suffix for path in (run / "export").iterdir()} == {".json", ".safetensors"}


def test_grids_of_super_resolution_show_the_input(artifacts):
    sheet = np.asarray(Image.open(artifacts / "sr" / "samples" / "step-00000002.png").convert("RGB")).astype(float)
    cell = sheet.shape[1] / 6  # two samples per row, each with input, output and original
    low_resolution, original = (sheet[40:200, round((k + 0.2) * cell) : round((k + 0.8) * cell)] for k in (0, 2))
    assert original.std() > 10 and abs(low_resolution - original).mean() < original.std() / 4


def test_sampled_images_carry_their_provenance(artifacts, imagen, tmp_path):
    options = ["--steps", "3,2", "--guidance", 2, "--sampler", "ddim,ddpm", "--low-res-noise", 0.2, "--seed", 5]
    reported = imagen("sample", artifacts / "cascade", *PROMPTS, "--n", 2, *options, "--out", tmp_path)
    assert f"4 images in {tmp_path}" in reported
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"{i:04d}.png" for i in range(4)), "sheet.png"]
    for i in range(4):
        assert Image.open(tmp_path / f"{i:04d}.png").size == (256, 256)
        metadata = read_metadata(tmp_path / f"{i:04d}.png")
        assert (metadata["prompt"], metadata["seed"]) == (PROMPTS[i // 2], 5 + i % 2)
        settings = [stage["sampling"] for stage in metadata["stages"]]
        assert [(s["steps"], s["guidance"], s["sampler"]) for s in settings] == [(3, 2, "ddim"), (2, 2, "ddpm")]

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("0*.png")}
    imagen(
        "sample", artifacts / "cascade", *PROMPTS, "--n", 2, *options, "--out", tmp_path
    )  # existing images are not sampled again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("0*.png")} == times


def test_training_without_embeddings_and_without_an_index(artifacts, imagen, quick_options, tmp_path):
    """Runs the command that trained `base` with the encoder instead of the files that `imagen data encode` writes."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(artifacts / "shards", shards, ignore=shutil.ignore_patterns("*.safetensors"))
    options = ["--train.steps", 4, *quick_options, "--data.on_the_fly", "true"]
    imagen("train", "debug_64", "--data", shards, "--out", run, *options)
    for row, expected in zip(rows(run), rows(artifacts / "base"), strict=True):
        for name in ("loss", "grad_norm", "conditional_gap", "validation_loss"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    picture, expected = (
        np.asarray(Image.open(r / "samples" / "step-00000004.png"), int) for r in (run, artifacts / "base")
    )
    assert abs(picture - expected).mean() < 0.1
    imagen("sample", run, PROMPTS[0], "--steps", 2, "--out", tmp_path / "pictures")


def test_a_run_is_a_cascade_of_one_stage(artifacts, imagen, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n", encoding="utf-8")
    imagen(
        "sample", artifacts / "base", "--prompts", tmp_path / "prompts.txt", "--steps", 2, "", "--out", tmp_path / "a"
    )
    found = [read_metadata(path)["prompt"] for path in sorted((tmp_path / "a").glob("0*.png"))]
    assert found == ["", *PROMPTS]
    assert Image.open(tmp_path / "a" / "0000.png").size == (64, 64)

    # The base's image upsampled by the other run equals the result of the cascade, up to rounding.
    two = ["--steps", 2, "--seed", 3]
    imagen("sample", artifacts / "cascade", "an octopus", "--stages", 1, *two, "--out", tmp_path / "small")
    small = tmp_path / "small" / "0000.png"
    imagen("upscale", artifacts / "sr", small, "--prompt", "an octopus", *two, "--out", tmp_path / "large")
    imagen("sample", artifacts / "cascade", "an octopus", *two, "--out", tmp_path / "both")
    apart, together = (np.array(Image.open(tmp_path / name / "0000.png"), int) for name in ("large", "both"))
    assert abs(apart - together).max() <= 1


def test_the_same_command_resumes(artifacts, imagen, quick_options, tmp_path):
    run = tmp_path / "base"
    shutil.copytree(artifacts / "base", run)
    before = rows(run)
    train = ["train", "debug_64", "--data", artifacts / "shards", "--out", run, *quick_options, "--train.steps"]
    reported = imagen(*train, 6)
    assert "resuming from step 4" in reported and "images, 6 steps of 4" in reported and "imagen sample" in reported
    assert rows(run)[:2] == before and [row["step"] for row in rows(run)] == [2, 4, 6]
    assert "all 6 steps are done" in imagen(*train, 6)
    assert [row["step"] for row in rows(run)] == [2, 4, 6]


def test_an_exhausted_time_budget_saves_the_run(artifacts, imagen, quick_options, tmp_path):
    arguments = ["train", "debug_256", "--data", artifacts / "shards", "--out", tmp_path, *quick_options]
    reported = imagen(*arguments, "--minutes", 1e-9)
    assert "minutes is used up; step 1 of 100 is saved" in reported and "imagen upscale" in reported
    assert (tmp_path / "export" / "cascade.json").exists()


def test_models_of_grayscale_images(artifacts, imagen, quick_options, tmp_path):
    grey = ["--stage.unet.image_channels", 1, "--train.steps", 2]
    imagen("train", "debug_64", "--data", artifacts / "shards", "--out", tmp_path / "run", *quick_options, *grey)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    imagen("sample", tmp_path / "run", PROMPTS[0], "--steps", 2, "--out", tmp_path / "a")
    picture = tmp_path / "a" / "0000.png"
    with Image.open(picture) as opened:
        assert (opened.mode, opened.size) == ("L", (64, 64))
    imagen("sample", tmp_path / "run", "", "--init", picture, "--steps", 2, "--out", tmp_path / "b")
