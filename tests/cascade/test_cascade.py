"""Check that an image depends only on its prompt and seed, and that invalid requests are rejected."""

import dataclasses
import math

import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, WordTokenEncoder, cascade, max_difference, pixels, stage
from PIL import Image
from torch import nn

from imagen.cascade import (
    Cascade,
)
from imagen.diffusion.noise import Variation
from imagen.errors import UserError
from imagen.pictures import read_picture


def test_an_image_does_not_depend_on_its_batch(small_cascade):
    prompts = ["cat", "a very long caption about a dog on a mat", "a hat", "cat", "two words"]
    alone = small_cascade.sample(["a hat"], seeds=[5], **QUICK)[0]
    together = small_cascade.sample(prompts, seeds=[1, 2, 5, 5, 4], batch_size=5, **QUICK)
    split = small_cascade.sample(prompts, seeds=[1, 2, 5, 5, 4], batch_size=2, **QUICK)
    assert max_difference(alone, together[2]) <= 1
    assert max(max_difference(a, b) for a, b in zip(together, split, strict=True)) <= 1
    assert max_difference(together[2], together[3]) > 20, "another prompt must give another image"
    assert max_difference(together[0], together[3]) > 20, "another seed must give another image"
    assert pixels(alone).std() > 10


def test_stochastic_samplers_do_not_depend_on_the_batch(small_cascade):
    options = {"sampler": ["ddpm", "ddim"], "steps": [4, 3], **QUICK}
    alone = small_cascade.sample(["a hat"], seeds=[5], **options)[0]
    assert max_difference(alone, small_cascade.sample(["cat on mat", "a hat"], seeds=[9, 5], **options)[1]) <= 1


def test_a_longer_unconditional_embedding_does_not_change_images():
    stages = (stage(16),)
    model = Cascade(stages, text=TEXT, unconditional=torch.randn(6, WIDTH), encoder=WordTokenEncoder())
    short = model.sample(["cat"], seeds=[3], **QUICK)[0]
    assert (
        max_difference(short, model.sample(["cat", "one two three four five six seven"], seeds=[3, 4], **QUICK)[0]) <= 1
    )


def test_stages_sampled_separately_equal_the_whole_cascade(small_cascade, tmp_path):
    prompts, seeds = ["a cat", "dog"], [11, 12]
    whole = small_cascade.sample(prompts, seeds=seeds, **QUICK)
    first = small_cascade.sample(prompts, seeds=seeds, stages=1, **QUICK)
    assert [image.size for image in first + whole] == [(16, 16)] * 2 + [(32, 32)] * 2
    for number, image in enumerate(first):
        image.save(tmp_path / f"{number}.png")
    start = [read_picture(tmp_path / f"{number}.png") for number in range(2)]
    continued = small_cascade.sample(prompts, seeds=seeds, start=start, **QUICK)
    alone = cascade(stage(32, 16)).sample(prompts, seeds=seeds, start=start, **QUICK)
    for a, b, c in zip(whole, continued, alone, strict=True):
        assert max_difference(a, b) == 0 and max_difference(a, c) == 0


def test_conditioning_augmentation_changes_the_image_reproducibly(small_cascade):
    make = lambda level: small_cascade.sample(["a cat"], low_res_noise=level, **QUICK)[0]  # noqa: E731
    assert max_difference(make(0.3), make(0.3)) == 0
    assert max_difference(make(0.0), make(0.3)) > 5


def test_images_need_not_be_square(small_cascade):
    (image,) = small_cascade.sample(["a cat"], size=(32, 48), **QUICK)
    assert image.size == (48, 32)
    with pytest.raises(UserError, match=r"40x50 .* divisible by 8; nearest: height 40, width 48 or 56"):
        small_cascade.sample(["a cat"], size=(40, 50), **QUICK)


def test_settings_apply_per_stage_or_to_all(small_cascade):
    request = small_cascade.request(["x"], steps=[2, 9], guidance=3, sampler="ddim")
    assert [(s.steps, s.guidance, s.sampler) for s in request.settings] == [(2, 3, "ddim"), (9, 3, "ddim")]
    seen = []
    small_cascade.sample(["x"] * 3, steps=[2, 3], batch_size=2, on_step=seen.append, **QUICK)
    assert [(p.stage, p.step, p.steps) for p in seen[:5]] == [(0, 0, 2), (0, 1, 2), (1, 0, 3), (1, 1, 3), (1, 2, 3)]
    assert [p.pictures for p in seen[::5]] == [range(2), range(2, 3)]
    assert seen[2].x0_BCHW.shape == (2, 3, 32, 32)


def test_guidance_and_thresholds_change_the_image(small_cascade):
    base = dataclasses.replace(small_cascade.stages[0].config.sampling, guidance=6.0, steps=4)
    make = lambda **change: small_cascade.sample(  # noqa: E731
        ["cat"], stages=1, settings=[dataclasses.replace(base, **change)], **QUICK
    )[0]
    reference = make()
    assert max_difference(reference, make(guidance=1.0)) > 5
    assert max_difference(reference, make(threshold="static")) > 1
    assert max_difference(reference, make(percentile=0.8)) > 1
    assert max_difference(make(sampler="ddpm", gamma=0.0), make(sampler="ddpm", gamma=1.0)) > 5
    assert max_difference(make(sampler="ddim", eta=0.0), make(sampler="ddim", eta=1.0)) > 5
    assert max_difference(make(guidance=1.0), make(guidance_interval=(50.0, 60.0))) <= 1  # guidance never applies


def test_prompts_are_encoded_once_and_the_empty_prompt_is_unconditional():
    model = cascade()
    model.sample(["cat", "", "dog", "cat"], batch_size=1, steps=1, **QUICK)
    assert model.texts.encoder.seen == ["cat", "dog"]
    assert max_difference(*(model.sample([""], guidance=w, steps=2, **QUICK)[0] for w in (1.0, 5.0))) <= 1


def test_sampling_does_not_change_a_network_in_training():
    model = cascade(stage(16))
    unet = model.stages[0].unet.train()
    model.sample(["cat"], **QUICK)
    assert unet.training
    unet(torch.randn(1, 3, 16, 16), torch.zeros(1), text=torch.randn(1, 2, WIDTH)).sum().backward()


@pytest.mark.filterwarnings("error")
def test_non_finite_values_are_an_error():
    model = cascade(stage(16))
    nn.init.constant_(model.stages[0].unet.conv_out.bias, math.nan)
    with pytest.raises(UserError, match="stage 16 produced values that are not finite"):
        model.sample(["cat"], **QUICK)


@pytest.mark.parametrize(
    "request_,message",
    [
        ({"prompts": []}, "no prompts"),
        ({"stages": 3}, r"stages is 3; this cascade has 2 stages \(16, 32\), so choose 1 to 2"),
        ({"stages": 0}, "stages is 0"),
        ({"steps": 0}, "stage 16: steps is 0"),
        ({"steps": [3, -1]}, "stage 32: steps is -1"),
        ({"steps": [3]}, "1 values of steps, but 2 stages"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": [1.0, math.inf]}, "stage 32: guidance is inf"),
        ({"low_res_noise": 1.5}, "low_res_noise is 1.5"),
        ({"sampler": "dpm"}, "unknown sampler 'dpm'; did you mean 'ddpm'"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seeds": -1}, "seed -1 is negative"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"size": (30, 32)}, "nearest: height 24 or 32, width 32"),
        ({"negative": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0; it must be from 0 to 1"),
        ({"guidance_interval": (3.0, -3.0)}, r"guidance_interval is \(3.0, -3.0\)"),
        ({"spacing": "lambda"}, "unknown spacing 'lambda'"),
        ({"threshold": "dynamc"}, "unknown threshold 'dynamc'"),
        ({"precision": "bfloat16"}, "unknown precision 'bfloat16': choose auto, fp32"),
        ({"noise": "gauss"}, "unknown noise 'gauss': choose philox, torch"),
        ({"strength": 0.5}, "strength applies to an init image"),
        ({"mask": Image.new("L", (8, 8))}, "mask applies to an init image"),
        ({"init": Image.new("RGB", (16, 16)), "strength": 0.0}, "stage 16: strength is 0; it must be above 0"),
        ({"init": Image.new("RGB", (16, 16)), "start": [Image.new("RGB", (16, 16))]}, "give one of the two"),
        ({"seeds": [Variation(1, 2, 1.5)]}, "amount of a variation is 1.5"),
        ({"tile": 8}, "stage 32: tile is 8; it must be 16 or more"),
        ({"start": [Image.new("RGB", (16, 16))], "scale": 8}, r"scale is 8; these stages .* can upsample by 2"),
        ({"start": [Image.new("RGB", (16, 16))] * 2}, "2 images to start from but 1 prompts"),
        ({"start": [Image.new("RGB", (16, 16))], "stages": 1}, "no super-resolution stage"),
        ({"start": [Image.new("RGB", (16, 16))], "size": (32, 32)}, "leave it out"),
    ],
)
def test_invalid_requests_are_rejected(small_cascade, request_, message):
    with pytest.raises(UserError, match=message):
        small_cascade.sample(**{"prompts": ["cat"], **QUICK, **request_})


def test_a_cascade_without_a_base_model_needs_images_and_one_without_text_rejects_prompts():
    with pytest.raises(UserError, match="no base stage: it upsamples 16x16"):
        cascade(stage(32, 16)).sample(["cat"], **QUICK)
    with pytest.raises(UserError, match="without text"):
        Cascade([stage(16, text=False)]).sample(["cat"], **QUICK)
    assert Cascade([stage(16, text=False)]).sample([""], **QUICK)[0].size == (16, 16)
