"""Test weights by name, float16 cascades, and scores and curves of runs, with stand-ins for the reference run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import imagen as package
from imagen import weights
from imagen.cascade import Cascade
from imagen.cascade.float16 import convert_to_float16
from imagen.emoji.demo.first import sample_packaged
from imagen.errors import UserError
from imagen.evaluate import compare as comparing
from imagen.evaluate.compare import compare, reference_curves, write_reference_curves
from imagen.evaluate.curve import append, read_curve


@pytest.fixture
def packaged(artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the debug cascade as the packaged weights."""
    shutil.copytree(artifacts / "cascade", tmp_path / "weights" / "emoji")
    monkeypatch.setattr(weights, "packaged_path", lambda name: tmp_path / "weights" / name)
    monkeypatch.setattr(comparing, "packaged_path", lambda name: tmp_path / "weights" / name)
    return tmp_path / "weights" / "emoji"


def test_weights_are_found_by_name(packaged, imagen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imagen("sample", "emoji", "a horse", "--stages", 1, "--steps", 2, "--out", "pictures")
    assert (tmp_path / "pictures" / "0000.png").exists()
    assert [stage.config.resolution for stage in package.load("emoji").stages] == [64, 256]


def test_a_folder_of_that_name_takes_precedence(packaged, artifacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(artifacts / "base", tmp_path / "emoji")
    assert len(package.load("emoji").stages) == 1


def test_missing_weights_are_reported(tmp_path, monkeypatch, error_of):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "packaged_path", lambda name: tmp_path / "nothing" / name)
    assert "lacks the weights 'emoji'" in error_of("sample", "emoji", "a horse", "--out", "pictures")
    assert "does not exist" in error_of("sample", "emojis", "a horse", "--out", "pictures")
    lines: list[str] = []
    assert sample_packaged(tmp_path / "demo", lines.append) == []
    assert "lacks the weights" in lines[0] and len(lines) == 1


def test_the_demo_samples_the_packaged_weights_first(packaged, tmp_path):
    lines: list[str] = []
    paths = sample_packaged(tmp_path / "demo", lines.append)
    assert Image.open(paths[0]).width == 256  # the largest stage
    assert all(path.is_file() for path in paths) and str(paths[0]) in lines[-1]


# --- low precision ---


def test_float16_weights_take_half_the_bytes_and_give_nearly_the_same_images(artifacts, imagen, tmp_path):
    imagen("assemble", artifacts / "base", artifacts / "sr", "--out", tmp_path / "half", "--half")
    size = {
        name: sum(f.stat().st_size for f in path.glob("stage-*.safetensors"))
        for name, path in paths(artifacts, tmp_path)
    }
    assert 0.5 < size["half"] / size["whole"] < 0.52
    for file in (tmp_path / "half").glob("stage-*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    pictures = {}
    for name, path in paths(artifacts, tmp_path):
        cascade = Cascade.load(path)
        assert all(value.dtype == torch.float32 for value in cascade.stages[0].unet.state_dict().values())
        drawn = cascade.sample(["a horse"], steps=2, precision="fp32", progress=False)
        pictures[name] = np.asarray(drawn[0]).astype(int)
    assert np.abs(pictures["half"] - pictures["whole"]).mean() < 2


def paths(artifacts: Path, tmp_path: Path) -> list[tuple[str, Path]]:
    return [("whole", artifacts / "cascade"), ("half", tmp_path / "half")]


def test_a_weight_beyond_float16_is_rejected(artifacts, tmp_path):
    cascade = Cascade.load(artifacts / "base")
    next(cascade.stages[0].unet.parameters()).data.fill_(1e6)
    cascade.save(tmp_path / "large")
    with pytest.raises(UserError, match="beyond the range"):
        convert_to_float16(tmp_path / "large")


# --- scores and curves ---


def test_a_run_is_evaluated_and_compared(artifacts, packaged, imagen, error_of, tmp_path):
    run = shutil.copytree(artifacts / "base", tmp_path / "run")
    options = ("--objects", 8, "--n", 4, "--steps", 2)
    out = ("--out", tmp_path / "sheets")
    rows = json.loads(imagen("evaluate-emoji", run, *options, "--guidance", "1,2", "--json", *out))
    assert [row["guidance"] for row in rows] == [1.0, 2.0]
    assert rows[0]["images"] == 16 and set(rows[0]["single"]) == {"object", "colour", "all"}
    assert set(rows[0]["relation"]) == {"object", "colour", "relation", "all"}
    assert set(rows[0]["count"]) == {"object", "colour", "number", "all"}
    assert read_curve(run) == rows
    assert (tmp_path / "sheets" / "guidance-2.png").exists()
    assert "object" in imagen("evaluate-emoji", run, *options, "--guidance", 1, *out)
    assert "guidance-2.png already exists and is not of this evaluation" in error_of(
        "evaluate-emoji", run, *options, "--guidance", 2, "--steps", 3, *out
    )
    assert read_curve(run) == rows  # a second evaluation replaces the row, with the same scores

    write_reference_curves([artifacts / "base"], packaged.parent / "curves.json")
    assert reference_curves().keys() == {"debug_64"}
    (row,) = json.loads(imagen("compare", run, "--out", tmp_path / "curves.png", "--json"))
    assert row["preset"] == "debug_64" and row["images"] == 16
    assert row["reference"]["loss"] == pytest.approx(row["mine"]["loss"], rel=1e-4)  # it is the same run
    assert Image.open(tmp_path / "curves.png").width > 1000
    assert "reference" in imagen("compare", run, "--out", tmp_path / "curves.svg")
    (tmp_path / "notes.png").write_text("precious")
    assert "is not a PNG file; choose another" in error_of("compare", run, "--out", tmp_path / "notes.png")
    assert "runs of one preset" in error_of("compare", run, artifacts / "sr", "--out", tmp_path / "no.png")
    assert "not a training run" in error_of("compare", artifacts / "cascade", "--out", tmp_path / "no.png")


def test_reference_curves_of_runs_that_begin_with_the_weights_of_others_are_joined(artifacts, tmp_path):
    run = artifacts / "base"
    write_reference_curves([run, run, artifacts / "sr"], tmp_path / "curves.json")
    curves = json.loads((tmp_path / "curves.json").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = metrics[-1]
    images = [row["images"] for row in metrics]
    assert [row["images"] for row in curves["debug_64"]["metrics"]] == [*images, *(i + last["images"] for i in images)]
    assert curves["debug_64"]["metrics"][-1]["step"] == 2 * last["step"]
    assert curves.keys() == {"debug_64", json.loads((artifacts / "sr" / "config.json").read_text())["name"]}


def test_runs_are_plotted_alone_without_reference_curves(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "packaged_path", lambda name: tmp_path / "nothing" / name)
    (row,) = compare([artifacts / "base"], tmp_path / "curves.png")
    assert row["reference"] == {} and (tmp_path / "curves.png").exists()


def test_an_evaluation_curve_is_in_the_order_of_steps(tmp_path):
    rows = [{"step": step, "images": step, "guidance": g, "steps": 30, "x": 0} for step, g in ((2, 1), (1, 2), (1, 1))]
    for row in [*rows, rows[0] | {"x": 1}]:
        append(tmp_path, row)
    assert read_curve(tmp_path) == [rows[2], rows[1], rows[0] | {"x": 1}]
