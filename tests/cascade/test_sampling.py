"""Test guidance, variations, image-to-image and inpainting against requests that must give equal images."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cascades import QUICK, cascade, max_difference, noise_image, pixels, recording_cascade, stage
from PIL import Image
from torch import nn

from imagen.cascade import (
    SamplingConfig,
    Variation,
    write_samples,
)
from imagen.diffusion.guidance import ClassifierFree, Estimate
from imagen.diffusion.noise import PictureNoise
from imagen.diffusion.samplers import create_sampler, sampler_names
from imagen.diffusion.schedule import diffuse
from imagen.errors import UserError
from imagen.pictures import read_metadata, read_picture
from imagen.stage.editing import Edit, InpaintingDenoiser


def test_negative_prompts_replace_the_unconditional_embedding(small_cascade):
    plain = small_cascade.sample(["cat"], **QUICK)[0]
    assert max_difference(plain, small_cascade.sample(["cat"], negative="", **QUICK)[0]) == 0
    assert max_difference(plain, small_cascade.sample(["cat"], negative="dog", **QUICK)[0]) > 5
    # With the prompt itself as the negative, every guidance scale gives the image of scale 1.
    itself = small_cascade.sample(["cat"], negative="cat", guidance=7.0, **QUICK)[0]
    assert max_difference(itself, small_cascade.sample(["cat"], guidance=1.0, **QUICK)[0]) <= 1
    both = small_cascade.sample(["cat", "cat"], negative=["dog", ""], **QUICK)
    assert max_difference(both[1], plain) <= 1 and max_difference(both[0], plain) > 5


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_deviation_of_the_conditional_estimate(rescale):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    model = lambda x, logsnr, *, text: Estimate(x * text)  # noqa: E731
    cond, uncond = (torch.tensor([a, b]).double().reshape(2, 1, 1, 1) for a, b in ((1.0, 2.0), (0.5, -1.0)))
    logsnr = torch.zeros(2).double()
    guided = ClassifierFree(model, {"text": cond}, {"text": uncond}, 5.0, rescale=rescale)(x, logsnr).x0
    plain = (uncond + 5 * (cond - uncond)) * x
    factor = rescale * (cond * x).std((1, 2, 3)) / plain.std((1, 2, 3)) + (1 - rescale)
    torch.testing.assert_close(guided, plain * factor.reshape(2, 1, 1, 1))


def test_settings_can_be_given_by_name_per_stage(small_cascade):
    request = small_cascade.request(["x"], guidance_interval=(-3.0, 2.0), guidance_rescale=[0.0, 0.5], spacing="logsnr")
    assert [s.guidance_interval for s in request.settings] == [(-3.0, 2.0)] * 2
    assert [s.guidance_rescale for s in request.settings] == [0.0, 0.5]
    request = small_cascade.request(["x"], guidance_interval=[None, (0.0, 1.0)])
    assert [s.guidance_interval for s in request.settings] == [None, (0.0, 1.0)]
    request = small_cascade.request(["x"], guidance_interval=[-3.0, 2.0])  # as JSON has it
    assert [s.guidance_interval for s in request.settings] == [(-3.0, 2.0)] * 2
    narrow = [stage(16), stage(32, 16)]
    for each in narrow:
        each.config = dataclasses.replace(each.config, sampling=SamplingConfig(guidance_interval=(-20.0, 3.0)))
    for given, expected in (
        ("all", [None, None]),
        (["all", (0.0, 1.0)], [None, (0.0, 1.0)]),
        (None, [(-20.0, 3.0)] * 2),
    ):
        request = cascade(*narrow).request(["x"], guidance_interval=given)
        assert [s.guidance_interval for s in request.settings] == expected
    for wrong in ([], [0.0], [0.0, 1.0, 2.0]):
        with pytest.raises(UserError, match="guidance_interval"):
            small_cascade.request(["x"], guidance_interval=wrong)
    assert (
        max_difference(*(small_cascade.sample(["x"], spacing=spacing, **QUICK)[0] for spacing in ("time", "logsnr")))
        > 1
    )
    with pytest.raises(TypeError, match="no setting 'guidence'; did you mean 'guidance'"):
        small_cascade.sample(["x"], guidence=3.0, **QUICK)


def test_a_variation_interpolates_between_two_seeds():
    shape = (3, 64, 64)
    seeds = [1, 2, Variation(1, 2, 0.0), Variation(1, 2, 1.0), Variation(1, 2, 0.3)]
    noise = PictureNoise(seeds, shape, dtype=torch.float64)
    for _ in range(2):  # twice, to check the second variation tensor too
        a, b, first, second, between = noise()
        torch.testing.assert_close(first, a)
        torch.testing.assert_close(second, b)
        torch.testing.assert_close(between, math.cos(0.15 * math.pi) * a + math.sin(0.15 * math.pi) * b)
        assert between.std() == pytest.approx(1, abs=0.02)


def test_more_variation_changes_the_image_more(small_cascade, tmp_path):
    paths = write_samples(small_cascade, ["cat"], tmp_path, seed=5, n=3, vary=0.2, stages=1, **QUICK)
    first, near, other = (read_picture(path) for path in paths)
    assert max_difference(first, small_cascade.sample(["cat"], seeds=5, stages=1, **QUICK)[0]) <= 1
    far = small_cascade.sample(["cat"], seeds=6, stages=1, **QUICK)[0]
    assert 0 < np.abs(pixels(first) - pixels(near)).mean() < np.abs(pixels(first) - pixels(far)).mean() / 2
    assert max_difference(near, other) > 5
    assert read_metadata(paths[1])["variation"] == {"seed": 6, "amount": 0.2}


def test_strength_is_the_share_of_steps_that_are_taken(small_cascade):
    seen = []
    init = noise_image(32, 32)
    small_cascade.sample(["cat"], init=init, strength=[0.5, 0.25], steps=8, on_step=seen.append, **QUICK)
    assert [(p.stage, p.steps) for p in seen] == [(0, 4)] * 4 + [(1, 2)] * 2
    seen.clear()
    small_cascade.sample(["cat"], init=init, strength=1e-12, steps=8, on_step=seen.append, **QUICK)
    assert [(p.stage, p.steps) for p in seen] == [(0, 1), (1, 1)]
    anew = small_cascade.sample(["cat"], **QUICK)[0]
    assert max_difference(anew, small_cascade.sample(["cat"], init=init, strength=1, **QUICK)[0]) == 0, (
        "strength 1 takes all steps from pure noise"
    )


def test_a_slightly_noised_image_is_preserved():
    """Checked with the exact estimate for data of this single image, and with an estimate that copies x_t."""
    model, _ = recording_cascade(sampling=SamplingConfig(steps=10, threshold="none"))
    model.stages[0].config = dataclasses.replace(model.stages[0].config, low_resolution=None)

    class Copy(nn.Module):  # x0 = x_t / alpha
        def forward(self, x, noise, **cond):
            return x / torch.cos(noise * math.pi / 2000).reshape(-1, 1, 1, 1)

    model.stages[0].unet = Copy()
    init = noise_image(64, 64)
    close, far = (model.sample([""], init=init, strength=s, **QUICK)[0] for s in (0.1, 0.5))
    near, away = (np.abs(pixels(image) - pixels(init)).mean() for image in (close, far))
    assert 0 < near < away / 2


@pytest.mark.parametrize("name", sampler_names())
def test_unmasked_regions_have_the_noise_of_every_level(name):
    """At every noise level, the unmasked region of x is the image with that much noise; the result is exact."""
    picture = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(256, 1, 8, 8).double()
    mask = torch.zeros(1, 1, 8, 8).double()
    mask[..., 4:] = 1
    logsnrs = torch.tensor([-8.0, -3.0, 0.0, 1.0, 4.0, math.inf], dtype=torch.float64)
    seen = []
    noise = PictureNoise(range(256), (1, 8, 8), dtype=torch.float64)
    denoise = InpaintingDenoiser(lambda x, logsnr: Estimate(x * 0.1), picture, mask)
    x = diffuse(picture, noise(), logsnrs[:1])
    sampler = create_sampler(name, {"gamma": 0.0} if name == "ddpm" else {})
    out = sampler.sample(denoise, x, logsnrs, noise=noise, on_step=lambda i, n, x, x0: seen.append(x[..., :4]))
    for logsnr, x in zip(logsnrs[1:-1], seen, strict=False):
        alpha, sigma = logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()
        residual = x - alpha * picture[..., :4]
        assert float(residual.std()) == pytest.approx(float(sigma), rel=0.05)
        assert abs(float(residual.mean())) < 0.05 * float(sigma)
    torch.testing.assert_close(out[..., :4], picture[..., :4])
    assert (out[..., 4:] - picture[..., 4:]).abs().mean() > 0.1


@pytest.mark.parametrize("detail_std", [None, 0.1])
@pytest.mark.parametrize("threshold", ["none", "dynamic"])
def test_every_stage_preserves_the_unmasked_region(detail_std, threshold):
    large = stage(32, 16)
    large.config = dataclasses.replace(large.config, detail_std=detail_std)
    model = cascade(stage(16), large)
    init, mask = noise_image(32, 32), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    settings = [dataclasses.replace(s.config.sampling, threshold=threshold) for s in model.stages]
    small = model.sample(["cat"], init=init, mask=mask, stages=1, settings=settings[:1], **QUICK)[0]
    result = model.sample(["cat"], init=init, mask=mask, settings=settings, **QUICK)[0]
    assert np.array_equal(pixels(result)[:, 16:], pixels(init)[:, 16:])
    assert max_difference(result.crop((0, 0, 16, 32)), init.crop((0, 0, 16, 32))) > 20
    reduced = init.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(small)[:, 9:], pixels(reduced)[:, 9:])  # the edge of the mask is soft


def test_init_images_preserve_their_aspect_ratio(small_cascade):
    assert small_cascade.sample(["cat"], init=noise_image(90, 61), strength=0.5, **QUICK)[0].size == (48, 32)
    assert small_cascade.sample(["cat"], init=noise_image(90, 61), strength=0.5, size=(64, 32), **QUICK)[0].size == (
        32,
        64,
    )


def test_an_edit_takes_the_last_log_snrs():
    levels = torch.arange(11.0)
    for strength, left in ((1.0, 10), (0.7, 7), (0.3, 3), (0.01, 1)):
        edit = Edit(picture_BCHW=torch.zeros(1, 1, 1, 1), strength=strength)
        assert torch.equal(edit.last_logsnrs(levels), levels[10 - left :])
