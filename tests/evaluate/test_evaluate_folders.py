"""Test what stops an evaluation before anything is sampled, and that no evaluation replaces another one."""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cascades import QUICK, TEXT, WordTokenEncoder, cascade, stage
from PIL import Image

from imagen.cascade import Cascade
from imagen.data.shards.writer import ShardWriter
from imagen.errors import UserError
from imagen.evaluate import generated
from imagen.evaluate.extractors import base
from imagen.evaluate.report import write_report
from imagen.evaluate.run import evaluate
from imagen.evaluate.sweep import cascade_gap, sweep

OPTIONS = {**QUICK, "metrics": ("fid",), "n": 4, "stages": 1, "steps": 1, "batch_size": 4}


class Colours:
    """A stand-in for Inception: the mean colour."""

    name, description = "colours", "mean colour"

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images_BCHW.float(), 1).flatten(1) / 255


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setitem(base.EXTRACTORS, "inception", lambda argument, device: Colours())


@pytest.fixture
def sampled(monkeypatch):
    """The numbers of images of the jobs that were sampled, or read from their folders."""
    counts = []
    features = generated.generated_features

    def counted(given, request, *others, **options):
        counts.append(len(request.prompts))
        return features(given, request, *others, **options)

    monkeypatch.setattr("imagen.evaluate.run.generated_features", counted)
    return counts


def png(side, seed):
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def write_shards(folder, images):
    with ShardWriter(folder) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"{number:03d}", "png": image, "txt": f"image {number}".encode()})
    return folder


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", [png(16, seed) for seed in range(8)])


def two_stages():
    stages = [stage(8, seed=1), stage(16, 8)]
    return Cascade(stages, text=TEXT, unconditional=torch.zeros(1, 16), encoder=WordTokenEncoder())


def test_images_that_are_too_small_are_left_out_and_counted(tmp_path, caplog):
    """The other images give the numbers of a data set without the small ones."""
    sides = [16, 12, 20, 16, 16, 8, 16, 16]
    images = [png(side, seed) for seed, side in enumerate(sides)]
    mixed = write_shards(tmp_path / "mixed", images)
    large = write_shards(tmp_path / "large", [image for image, side in zip(images, sides, strict=True) if side >= 16])
    options = {**OPTIONS, "split": "train", "cache": tmp_path / "cache"}
    found = evaluate(cascade(), mixed, tmp_path / "a", **options)
    assert "2 of 8 images are left out" in caplog.text
    assert (found["reference"]["images"], found["reference"]["left_out"]) == (6, 2)
    assert "left out:\n2 at 16 pixels." in write_report(tmp_path / "a", [found], "imagen evaluate").read_text()
    same = evaluate(cascade(), large, tmp_path / "b", **options)
    assert (same["reference"]["images"], same["reference"]["left_out"]) == (6, 0)
    with pytest.raises(UserError, match="has 6 samples with large enough images, fewer than the 7"):
        evaluate(cascade(), mixed, tmp_path / "c", **{**options, "reference": 7})
    true = {**options, "stages": 2, "inputs": "true", "n": 6}
    assert evaluate(two_stages(), mixed, tmp_path / "d", **true)["images"] == 6
    with pytest.raises(UserError, match="has 6 samples with large enough images, fewer than the 7"):
        evaluate(two_stages(), mixed, tmp_path / "e", **{**true, "n": 7})


def test_a_damaged_image_stops_an_evaluation_before_it_samples(tmp_path, sampled):
    images = [png(16, seed) for seed in range(8)]
    shards = write_shards(tmp_path / "shards", [*images[:7], images[7][:-200]])
    with pytest.raises(UserError, match=r"007 in .*; remove it, or use fewer samples"):
        evaluate(cascade(), shards, tmp_path / "a", split="train", cache=tmp_path / "cache", **OPTIONS)
    assert sampled == [] and not (tmp_path / "a").exists()


def test_the_folder_is_compared_before_the_real_images_are_read(shards, tmp_path, monkeypatch):
    options = {**OPTIONS, "split": "train"}
    evaluate(cascade(), shards, tmp_path / "a", cache=tmp_path / "cache", **options)
    monkeypatch.setattr("imagen.evaluate.run.real_features", lambda *_, **__: pytest.fail("it read real images"))
    with pytest.raises(UserError, match="other options, data or weights"):
        evaluate(cascade(), shards, tmp_path / "a", **{**options, "n": 5})


def test_a_report_is_replaced_only_by_one_that_has_its_content(shards, tmp_path, sampled):
    options = {**OPTIONS, "split": "train", "cache": tmp_path / "cache"}
    evaluate(cascade(), shards, tmp_path / "a", **options)
    more = evaluate(cascade(), shards, tmp_path / "a", **{**options, "metrics": ("kid", "fid")})
    assert list(more["metrics"]) == ["kid", "fid"]
    path = tmp_path / "a" / "report.json"
    for changes, message in (
        ({"metrics": ("kid",)}, "report.json also has fid: request"),
        ({"metrics": ("kid", "fid"), "reference": 5}, "report.json compares with other real images"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(cascade(), shards, tmp_path / "a", **{**options, **changes})
    assert json.loads(path.read_text()) == more and len(sampled) == 2
    path.write_text("[]")
    with pytest.raises(UserError, match="is not a report of this evaluation"):
        evaluate(cascade(), shards, tmp_path / "a", **options)


def test_a_sweep_or_a_gap_replaces_no_other_evaluation(shards, tmp_path, sampled):
    options = {**OPTIONS, "split": "train", "cache": tmp_path / "cache"}
    evaluate(cascade(), shards, tmp_path / "alone", **options)
    sweep(cascade(), shards, tmp_path / "s", "guidance", [1.0, 2.0], **options)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "report.json").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.glob("*/report.json")}
    done = len(sampled)
    for folder, message in (
        ("alone", "contains another evaluation"),
        ("s", r"contains the evaluation guidance-[12].0: repeat it"),
        ("notes", "is not empty and contains no evaluation"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(cascade(), shards, tmp_path / folder, "guidance", [2.0, 3.0] if folder == "s" else [1.0], **options)
        with pytest.raises(UserError, match=message):
            cascade_gap(two_stages(), shards, tmp_path / folder, **{**options, "stages": 2})
    with pytest.raises(UserError, match="is not empty and contains no evaluation"):
        evaluate(cascade(), shards, tmp_path / "s", **options)
    assert {path: path.read_bytes() for path in before} == before and len(sampled) == done
    rows = sweep(cascade(), shards, tmp_path / "s", "guidance", [2.0, 1.0, 3.0], **options)
    assert json.loads((tmp_path / "s" / "report.json").read_text())["rows"] == rows
