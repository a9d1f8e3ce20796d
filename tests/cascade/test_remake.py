"""The metadata of a picture is somebody's: what `sample --from` may be asked for, and what it refuses."""

import json
import time

import numpy as np
import pytest
import torch
from cascades import QUICK, cascade, stage
from PIL import Image

from imagen.cascade import read_provenance, regenerate_request, write_samples
from imagen.errors import UserError
from imagen.pictures import read_metadata, write_png

DEEP = json.loads("[" * 90 + "]" * 90)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    two = cascade(stage(16), stage(32, 16))
    two.save(tmp_path_factory.mktemp("model") / "cascade")
    return two


@pytest.fixture(scope="module")
def picture(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return write_samples(model, ["cat", "dog"], folder, batch_size=2, negative="blur", **QUICK)[1]


def changed(picture, path, where: str, value):
    """A copy of the picture whose metadata have another value, or lack it, at `where` (`conditions.rows.0`)."""
    metadata = read_metadata(picture)
    *outer, last = where.split(".")
    inner = metadata
    for key in outer:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is KeyError:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    write_png(path, Image.open(picture), metadata)
    return path


def test_what_a_picture_says(model, picture):
    made = read_provenance(picture)
    assert (made.prompt, made.negative, made.seed, made.size, made.precision) == ("dog", "blur", 0, (32, 32), "fp32")
    assert [each.resolution for each in made.stages] == [16, 32] and made.variation is made.init is made.tiles is None
    assert (made.conditions.batch, made.conditions.place, made.conditions.rows) == (2, 1, (2, 2))
    plan, place = regenerate_request(model, picture, device="cpu")
    assert (plan.prompts, plan.batch_size, plan.micro_batch, place) == (("dog", "dog"), 2, (2, 2), 1)


def test_a_picture_names_the_generator_of_its_noise(model, picture, tmp_path):
    """Files from before they did so are made again by the generators of then."""
    assert read_metadata(picture)["noise"] == read_provenance(picture).noise == "philox"
    asked = {name: value for name, value in QUICK.items() if name != "progress"}
    old = model.plan(["cat"], seeds=[3], noise="torch", **asked)
    (image,) = model.run(old, progress=False)
    (other,) = model.sample(["cat"], seeds=[3], **QUICK)
    assert np.asarray(image).tolist() != np.asarray(other).tolist()
    made = {**model.metadata(old, 0), "conditions": model.conditions(old, 0)}
    assert "noise" not in made
    write_png(tmp_path / "old.png", image, made)
    plan, place = regenerate_request(model, tmp_path / "old.png", device="cpu")
    again = list(model.run(plan, progress=False))[place]
    assert np.array_equal(again, image) and model.metadata(plan, place) == model.metadata(old, 0)
    with pytest.raises(UserError, match=r"made with another noise \(None, not 'philox'"):
        (tmp_path / "old.png").rename(tmp_path / "0000.png")
        write_samples(model, ["cat"], tmp_path, seed=3, **QUICK)


@pytest.mark.parametrize(
    "where, value, message",
    [
        ("conditions.threads", 1_000_000, "conditions: threads is 1,000,000; it must be at least 1 and at most 1024"),
        ("conditions.threads", 0, "conditions: threads is 0; it must be at least 1"),
        ("conditions.threads", -1, "conditions: threads is -1; it must be at least 1"),
        ("conditions.threads", "2", "conditions.threads is '2'; it must be a whole number"),
        ("conditions.batch", "2", "conditions.batch is '2'; it must be a whole number"),
        ("conditions.batch", 1e308, "conditions.batch is 1e.308; it must be a whole number"),
        ("conditions.batch", 10**12, "conditions: batch is about|conditions: batch is 1,000,000,000,000; it must be"),
        ("conditions.batch", 0, "conditions: batch is 0; it must be at least 1 and at most 4096"),
        ("conditions.place", 2, "conditions: place is 2; it must be at least 0 and below 2"),
        ("conditions.place", -1, "conditions: place is -1"),
        ("conditions.rows", [2, 0], r"conditions: rows\[1\] is 0; it must be at least 1"),
        ("conditions.rows", [-3, 2], r"conditions: rows\[0\] is -3"),
        ("conditions.rows", [2], "conditions.rows has 1 values, but it went through 2 stages"),
        ("conditions.rows", "all", "conditions.rows is 'all'; it must be a list"),
        ("conditions", KeyError, "field 'conditions' is missing"),
        ("conditions.device", KeyError, "field 'conditions.device' is missing"),
        ("size", [32], r"size is \[32\]; it must be a list of 2"),
        ("size", 32, "size is 32; it must be a list of 2"),
        ("size", [0, 32], r"size\[0\] is 0; it must be at least 1"),
        ("size", [65_536, 65_536], "pixels of its batch is 8,589,934,592; it must be at most 268,435,456"),
        ("prompt", 5, "prompt is 5; it must be text"),
        ("prompt", None, "prompt is null; it must be text"),
        ("prompt", "x" * 1_000_000, "prompt has 1,000,000 characters; at most 10,000"),
        ("negative", ["blur"], r"negative is \[.blur.\]; it must be text"),
        ("seed", -1, "seed is -1; it must be at least 0"),
        ("seed", 2**63, "seed is about|seed is .*; it must be"),
        ("seed", True, "seed is true; it must be a whole number"),
        ("variation", {"seed": 1}, "field 'variation.amount' is missing"),
        ("variation", {"seed": 1, "amount": 2}, "variation: amount is 2; it must be at least 0 and at most 1"),
        ("text", "t5", "text is 't5'; it must be an object"),
        ("noise", "mersenne", "noise is 'mersenne'; it must be"),
        ("precision", "fp8", "precision is 'fp8'; it must be one of auto, fp32, bf16, fp16"),
        ("stages", [], "the number of stages is 0; it must be at least 1"),
        ("stages.0.sampling.steps", 10**6, r"stages\[0\]: sampling: steps is 1,000,000; it must be at most 10000"),
        ("stages.0.sampling.guidance", 1e39, r"stages\[0\]: sampling: guidance is 1e\+39"),
        ("stages.1.weights", DEEP, r"stages\[1\].weights is .*; it must be text"),
        ("stages", {"deep": DEEP}, "stages is .*; it must be a list"),
        ("tiles", [16, None, 16], "tiles has 3 values, but it went through 2 stages"),
        ("tiles", [None, 0], r"tiles\[1\] is 0; it must be at least 1"),
        ("strength", [0.5, 7], r"strength\[1\] is 7; it must be above 0 and at most 1"),
        ("masks", 3, "masks is 3; it must be text"),
        ("threads", 4, "unknown field 'threads'"),
    ],
)
def test_what_no_picture_was_made_with(model, picture, tmp_path, where, value, message):
    path = changed(picture, tmp_path / "p.png", where, value)
    threads, began = torch.get_num_threads(), time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        regenerate_request(model, path, device="cpu")
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 400
    assert torch.get_num_threads() == threads and time.monotonic() - began < 10


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 900 + "]" * 900, "nested more than 100 deep"),
        ('{"size": [1e400, 1]}', "1e400 is not a finite number"),
        ('{"prompt": NaN}', "NaN is not a finite number"),
        ('{"prompt": "\\ud800"}', "field|prompt is not UTF-8"),
        ("[1]", "says nothing of how it was made"),
    ],
)
def test_metadata_that_is_no_json_of_ours(tmp_path, text, message):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("imagen", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png", pnginfo=info)
    with pytest.raises(UserError, match=message):
        read_provenance(tmp_path / "p.png")


def test_half_of_a_surrogate_pair_is_no_prompt(picture, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("imagen", json.dumps({**read_metadata(picture), "prompt": "cat \ud800"}))  # escaped: ASCII
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png", pnginfo=info)
    with pytest.raises(UserError, match="prompt is not UTF-8"):
        read_provenance(tmp_path / "p.png")
