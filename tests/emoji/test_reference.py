"""Test the packaged weights: a few samples have the scores of docs/explanation/reference-run.md."""

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import imagen as package
from imagen.cascade import Cascade
from imagen.data.loading.stream import dataset_batch
from imagen.emoji.alignment import evaluate
from imagen.emoji.colour import background_colour
from imagen.emoji.dataset import build_emoji, heldout_prompts
from imagen.emoji.recogniser import load_recogniser
from imagen.evaluate.metrics.restoration import colour_error, psnr
from imagen.stage.inputs import to_images
from imagen.weights import packaged

STAGES = ((64, None, 17_432_268), (256, 64, 1_393_004), (1024, 256, 856_320))


@pytest.fixture(scope="module")
def emoji() -> Cascade:
    return package.load("emoji")


def test_weights_are_float16_and_fit_in_40_megabytes(emoji):
    folder = packaged("emoji")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40e6
    for file in folder.glob("stage-*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118
    for stage, (resolution, low, parameters) in zip(emoji.stages, STAGES, strict=True):
        assert (stage.config.resolution, stage.config.low_resolution) == (resolution, low)
        assert sum(parameter.numel() for parameter in stage.unet.parameters()) == parameters


def test_samples_match_their_prompts(emoji):
    heldout = heldout_prompts(16)
    prompts = [each.prompt for each in heldout]
    images = emoji.sample(prompts, seeds=list(range(16)), stages=1, batch_size=16, progress=False)
    (accuracies,) = evaluate(load_recogniser(), {"single": heldout}, {"single": images})[0].values()
    assert accuracies["object"] >= 13 / 16 and accuracies["colour"] == 1


def test_first_command_of_the_tutorial(imagen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imagen("sample", "emoji", "an octopus on a blue background", "--out", "samples")
    image = Image.open(tmp_path / "samples" / "0000.png")
    assert image.size == (1024, 1024)
    (detections,) = load_recogniser().detect([image.convert("RGB").resize((64, 64), Image.Resampling.BOX)])
    assert detections[0].name == "octopus" and background_colour(np.array(image)) == "blue"


@pytest.mark.parametrize(("number", "least"), [(1, 2.0), (2, 1.5)])
def test_super_resolution_beats_bicubic_without_colour_shift(emoji, tmp_path, number, least):
    stage = emoji.stages[number]
    large, low = stage.config.resolution, stage.config.low_resolution
    build_emoji(tmp_path, sizes=(low, large), variants=1, limit_objects=6, progress=False)
    count = 6 if large < 1024 else 3
    batch = dataset_batch(
        tmp_path, list(range(count)), resolution=large, low_resolution=low, text=None, split="heldout"
    )
    small, references = to_images(batch.low_res), [np.array(image) for image in to_images(batch.image)]
    has_text = stage.config.unet.text_width is not None
    text, unconditional = (emoji.text, emoji.unconditional) if has_text else (None, None)
    single_stage = Cascade([stage], text=text, unconditional=unconditional)
    prompts = batch.captions if has_text else [""] * count
    ours = [np.array(each) for each in single_stage.sample(prompts, start=small, batch_size=2, progress=False)]
    bicubic = [np.array(image.resize((large, large), Image.Resampling.BICUBIC)) for image in small]
    assert psnr(ours, references) > psnr(bicubic, references) + least
    assert np.abs(colour_error(ours, references)).max() < 1
