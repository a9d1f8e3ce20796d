"""Test the public Python API: prompts, embeddings, tensors, hints for argument names of other libraries, and help()."""

import dataclasses
import inspect
import pydoc
import subprocess
import sys
from typing import get_type_hints

import numpy as np
import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, WordTokenEncoder, cascade, max_difference, stage
from PIL import Image

import imagen
from imagen.cascade import Cascade, SamplingConfig, Variation, regenerate_request, write_samples, write_upscaled
from imagen.cascade.options import DEFAULTS, JobOptions, RequestOptions, SamplingOptions
from imagen.cascade.request import make_request
from imagen.errors import UserError
from imagen.pictures import read_metadata


@pytest.fixture(scope="module")
def small_cascade() -> Cascade:
    return cascade()


def identical(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


# --- prompts and results ---


def test_a_single_prompt_equals_a_list_of_one(small_cascade):
    (alone,) = small_cascade.sample("cat", **QUICK)
    assert identical(alone, small_cascade.sample(["cat"], **QUICK)[0])


def test_an_embedding_equals_its_prompt(small_cascade):
    cat, dog = WordTokenEncoder().encode(["cat", "dog on mat"])
    texts = small_cascade.sample(["cat", "dog on mat"], negative="cow", seeds=[3, 4], **QUICK)
    cow = WordTokenEncoder().encode(["cow"])[0]
    tensors = small_cascade.sample([cat, dog], negative=cow, seeds=[3, 4], **QUICK)
    mixed = small_cascade.sample(["cat", dog.double()], negative="cow", seeds=[3, 4], **QUICK)
    assert all(identical(a, b) and identical(a, c) for a, b, c in zip(texts, tensors, mixed, strict=True))
    (alone,) = small_cascade.sample(cat, seeds=3, **QUICK)
    assert identical(alone, small_cascade.sample("cat", seeds=3, **QUICK)[0])
    stacked = small_cascade.sample(torch.stack([cat, cow]), seeds=3, **QUICK)
    assert len(stacked) == 2 and max_difference(stacked[0], alone) <= 1  # rounding depends on the batch size


@pytest.mark.parametrize(
    "embedding, message",
    [
        (torch.zeros(2, WIDTH + 1), f"a prompt embedding has dimension {WIDTH + 1}; words gives {WIDTH}"),
        (torch.zeros(TEXT.max_tokens + 1, WIDTH), f"has {TEXT.max_tokens + 1} tokens; this cascade takes at most"),
        (torch.zeros(WIDTH), r"is torch.float32 of shape \(16,\); it must be float \[tokens, dimension\]"),
        (torch.zeros(0, WIDTH), r"of shape \(0, 16\)"),
        (torch.zeros(2, WIDTH, dtype=torch.int64), "is torch.int64"),
        (torch.full((2, WIDTH), float("nan")), "not finite"),
        (7, "a prompt is 7; it must be text, or an embedding"),
    ],
)
def test_invalid_embeddings_are_rejected(small_cascade, embedding, message):
    with pytest.raises(UserError, match=message):
        small_cascade.request([embedding])


def test_a_cascade_without_text_rejects_embeddings():
    with pytest.raises(UserError, match="trained without text"):
        Cascade([stage(16, text=False)]).request([torch.zeros(2, WIDTH)])


def test_tensors_hold_the_pixels_of_the_images(small_cascade):
    images = small_cascade.sample(["cat", "dog", "cow"], seeds=[1, 2, 3], batch_size=2, **QUICK)
    tensor = small_cascade.sample(["cat", "dog", "cow"], seeds=[1, 2, 3], batch_size=2, output="tensor", **QUICK)
    assert tensor.dtype == torch.uint8 and tensor.shape == (3, 3, 32, 32)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(image) for image in images]))
    with pytest.raises(UserError, match="output is 'numpy'; it must be"):
        small_cascade.sample("cat", output="numpy", **QUICK)


def test_one_variation_applies_to_all_images(small_cascade):
    variation = Variation(1, 2, 0.25)
    assert small_cascade.request(["cat", "dog"], seeds=variation).seeds == (variation, variation)


def test_files_from_embeddings_have_a_hash_and_resume(small_cascade, tmp_path):
    cat = WordTokenEncoder().encode(["cat"])[0]
    (path,) = write_samples(small_cascade, [cat], tmp_path, seed=3, steps=1, **QUICK)
    made = read_metadata(path)
    assert made["prompt"] == "" and len(made["embedding"]) == 64 and "negative_embedding" not in made
    before = path.stat().st_mtime_ns
    assert write_samples(small_cascade, cat, tmp_path, seed=3, steps=1, **QUICK) == [path]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with another embedding"):
        write_samples(small_cascade, [cat + 1], tmp_path, seed=3, steps=1, **QUICK)
    with pytest.raises(UserError, match="from a prompt embedding, and the file contains only its hash"):
        regenerate_request(small_cascade, path)


# --- names ---


@pytest.mark.parametrize(
    "name, ours",
    [
        ("guidance_scale", "`guidance`"),
        ("num_inference_steps", "`steps`"),
        ("num_images_per_prompt", r"a list: `sample\(\[prompt\] \* 4, seeds="),
        ("negative_prompt", "`negative`"),
        ("generator", "`seeds`"),
        ("seed", "`seeds`"),
        ("height", r"`size=\(height, width\)`"),
        ("width", r"`size=\(height, width\)`"),
        ("prompt_embeds", "`prompts`, a list of float tensors"),
        ("output_type", "`output`"),
        ("rows", "`micro_batch`"),
    ],
)
def test_errors_for_diffusers_arguments_name_ours(small_cascade, name, ours):
    with pytest.raises(TypeError, match=f"no setting '{name}'; the equivalent here is {ours}"):
        small_cascade.sample("cat", **{name: 4})


def test_errors_for_typos_suggest_the_closest_name(small_cascade, tmp_path):
    for name, near in (("negatives", "negative"), ("micro_batchs", "micro_batch"), ("stpes", "steps")):
        with pytest.raises(TypeError, match=f"no setting '{name}'; did you mean '{near}'"):
            small_cascade.request("cat", **{name: 4})
    with pytest.raises(TypeError, match=r"load\(\) has no argument 'torch_dtype'; the equivalent here is `precision`"):
        imagen.load(tmp_path, torch_dtype=torch.float16)
    with pytest.raises(TypeError, match=r"equivalent here is `guidance`, an argument of `Cascade\.sample`"):
        imagen.load(tmp_path, guidance_scale=3)
    with pytest.raises(TypeError, match=r"load\(\) has no argument 'stage'; did you mean 'stages'"):
        Cascade.load(tmp_path, stage=1)


# --- one definition ---


def test_every_field_of_a_sampling_config_is_an_option():
    assert set(SamplingOptions.__annotations__) == {field.name for field in dataclasses.fields(SamplingConfig)}


def test_requests_have_the_options_and_defaults_in_help():
    parameters = inspect.signature(make_request).parameters
    named = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    own = {"fast"}  # of `Cascade.request`, which replaces the stages' defaults
    assert named | set(SamplingOptions.__annotations__) | own == set(RequestOptions.__annotations__)
    assert {name: parameters[name].default for name in named} == {name: DEFAULTS.get(name) for name in named}


@pytest.mark.parametrize(
    "function, options",
    [
        (Cascade.sample, RequestOptions),
        (Cascade.request, RequestOptions),
        (write_samples, JobOptions),
        (write_upscaled, JobOptions),
    ],
)
def test_help_shows_every_option_with_its_type_and_meaning(function, options):
    shown = inspect.signature(function).parameters
    text = pydoc.plain(pydoc.render_doc(function))
    assert "**" not in text.splitlines()[2] and "options" not in shown
    for name in get_type_hints(options):
        assert shown[name].annotation is not inspect.Parameter.empty and f"    {name}: " in text
    assert shown["steps"].default is None and shown["precision"].default == "auto"


def test_help_of_load_shows_its_arguments():
    first = pydoc.plain(pydoc.render_doc(imagen.load)).splitlines()[2]
    for name in ("path: str", "stages: int | None = None", "precision: ", "int8_text: bool = False", "-> 'Cascade'"):
        assert name in first


def test_reprs_describe_the_objects(small_cascade):
    millions = sum(parameter.numel() for parameter in small_cascade.stages[1].unet.parameters()) / 1e6
    assert repr(small_cascade.stages[1]) == f"<Stage: 16 to 32, {millions:.3g} M parameters>"
    first, second = small_cascade.stages
    assert repr(small_cascade) == f"<Cascade: text by words; {first!r} -> {second!r}>"
    request = small_cascade.request(["cat", "dog"], steps=[4, 2], device="cpu", precision="fp32")
    assert repr(request) == (
        "<Request: 2 images of 32x32 for 'cat' and 1 more; 16x16 in 4 steps of dpmpp_2m, guidance 2, "
        "32x32 in 2 steps of dpmpp_2m, guidance 2; cpu, fp32>"
    )
    assert "for an embedding;" in repr(small_cascade.request(torch.zeros(1, WIDTH)))


def test_importing_the_package_is_lazy():
    script = """
import sys, imagen
heavy = {"torch", "numpy", "PIL", "safetensors", "transformers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {"Cascade", "UserError", "load", "train_run"} <= set(dir(imagen))
assert imagen.UserError.__name__ == "UserError" and not heavy & set(sys.modules)
from imagen import Cascade, Variation
assert Cascade.__module__ == "imagen.cascade.cascade" and Variation(1, 2, 0.5).other == 2
assert imagen.train_run.__name__ == "train_run"
try:
    imagen.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
