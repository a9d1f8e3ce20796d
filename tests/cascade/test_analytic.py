"""Compare stages with analytic models: Gaussian data, copies of the input, and known detail."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cascades import QUICK, TEXT, WIDTH, pixels, recording_cascade, stage
from PIL import Image
from torch import Tensor, nn

from imagen.cascade import (
    Cascade,
    SamplingConfig,
    Stage,
)
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.schedule import ScheduleConfig, alpha_sigma, build_schedule, noise_label
from imagen.stage.inputs import from_uint8, to_uint8
from imagen.stage.resize import upsample


class Gaussian(nn.Module):
    """Computes the exact x0 estimate for pixels ~ N(mu, s^2), where mu is the first token's first three values."""

    def __init__(self, s: float):
        super().__init__()
        self.s = s

    def forward(self, x: Tensor, noise: Tensor, *, text: Tensor, text_mask: Tensor) -> Tensor:
        logsnr = -2 * (noise.double() * math.pi / 2000).tan().log()
        alpha, sigma = alpha_sigma(logsnr, like=x)
        mu = text[:, 0, :3, None, None].double()
        return mu + alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * (x.double() - alpha * mu)


class FixedColourEncoder:
    """Encodes every prompt as the colour (0.2, -0.1, 0.3)."""

    def encode(self, prompts: list[str]) -> list[Tensor]:
        token = torch.zeros(1, WIDTH)
        token[0, :3] = torch.tensor([0.2, -0.1, 0.3])
        return [token for _ in prompts]


@pytest.mark.parametrize("sampler,steps", [("ddpm", 150), ("ddim", 150), ("dpmpp_2m", 40)])
@pytest.mark.parametrize("w", [1.0, 2.0])
def test_a_gaussian_model_gives_images_with_its_mean_and_deviation(sampler, steps, w):
    s = 0.1
    config = dataclasses.replace(
        stage(16).config,
        objective=ObjectiveConfig(prediction="x0"),
        sampling=SamplingConfig(sampler=sampler, steps=steps, guidance=w, threshold="none", gamma=0.0),
    )
    model = Cascade(
        [Stage(config, Gaussian(s))], text=TEXT, unconditional=torch.zeros(1, WIDTH), encoder=FixedColourEncoder()
    )
    images = model.sample(["colour"] * 24, seeds=list(range(24)), batch_size=24, **QUICK)
    values = np.stack([pixels(image) for image in images]) / 127.5 - 1
    # Both estimates have the same s and are linear in mu, so guidance moves the mean to exactly 0 + w (mu - 0).
    # The standard error of a mean is s / sqrt(24 * 256) = 0.0013; one level is 0.0078.
    np.testing.assert_allclose(values.mean((0, 1, 2)), w * np.array([0.2, -0.1, 0.3]), atol=0.006)
    # A finite number of steps gives too small a spread. tests/diffusion checks convergence.
    np.testing.assert_allclose(values.std((0, 1, 2)), s, rtol=0.15)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_conditioning_augmentation_equals_that_of_training(level, kind):
    model, network = recording_cascade(low_res_schedule=ScheduleConfig(kind=kind))
    start = Image.new("RGB", (16, 16), (255, 0, 204))
    model.sample([""], start=[start], low_res_noise=level, **QUICK)
    logsnr = build_schedule(ScheduleConfig(kind=kind), 64)(torch.tensor([level], dtype=torch.float64))
    alpha, sigma = alpha_sigma(logsnr)
    torch.testing.assert_close(network.low_res_noise, noise_label(logsnr).float(), rtol=1e-4, atol=1e-3)
    expected = float(alpha) * torch.tensor([1.0, -1.0, 0.6])
    torch.testing.assert_close(network.low_res.mean((0, 2, 3)), expected, rtol=0, atol=0.06 * float(sigma) + 1e-4)
    torch.testing.assert_close(network.low_res.std((2, 3)).mean(), sigma.float()[0], rtol=0.03, atol=1e-5)


def test_conditioning_augmentation_is_drawn_once_and_independent_of_the_sampler():
    model, network = recording_cascade(sampling=SamplingConfig(sampler="ddpm", steps=2, low_res_noise=1.0))
    model.sample([""], start=[Image.new("RGB", (16, 16))], **QUICK)
    first, drawn = network.seen[0].flatten(), network.low_res.flatten()
    correlation = torch.corrcoef(torch.stack([first, drawn]))[0, 1]
    assert abs(float(correlation)) < 5 / first.numel() ** 0.5
    model.sample([""], start=[Image.new("RGB", (16, 16))], steps=1, **QUICK)
    assert torch.equal(drawn, network.low_res.flatten())


def test_only_the_network_runs_under_autocast():
    model, network = recording_cascade(sampling=SamplingConfig(steps=3))
    estimates = []
    request = {"start": [Image.new("RGB", (16, 16))], "device": "cpu", "progress": False}
    model.sample([""], precision="bf16", on_step=lambda preview: estimates.append(preview.x0_BCHW), **request)
    assert network.autocast and {x.dtype for x in [*network.seen, *estimates]} == {torch.float32}
    model.sample([""], precision="fp32", **request)
    assert not network.autocast


def test_quantisation_is_exact_for_png_values():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-1.4, 0.499 / 127.5 - 1, 0.501 / 127.5 - 1, 7.0])).tolist() == [0, 0, 1, 255]


def test_a_stage_that_copies_its_input_gives_the_upsampled_image():
    model, _ = recording_cascade(sampling=SamplingConfig(steps=2, low_res_noise=0.0, threshold="static"))
    gradient = Image.fromarray(np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8))
    (image,) = model.sample([""], start=[gradient], **QUICK)
    assert image.size == (96, 64)
    assert np.abs(pixels(image) - pixels(gradient.resize((96, 64), Image.Resampling.BICUBIC))).mean() < 2


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_a_stage_that_adds_no_detail_gives_the_upsampled_image(threshold):
    class NoDetail(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, *, low_res: Tensor, low_res_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    # The noise changes only the network's input.
    sampling = SamplingConfig(steps=3, low_res_noise=0.5, threshold=threshold)
    config = dataclasses.replace(recording_cascade()[0].stages[0].config, detail_std=0.1, sampling=sampling)
    estimates: list[Tensor] = []
    gradient = Image.fromarray(np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8))
    (image,) = Cascade([Stage(config, NoDetail())]).sample(
        [""], start=[gradient], on_step=lambda preview: estimates.append(preview.x0_BCHW), **QUICK
    )
    enlarged = to_uint8(upsample(from_uint8(torch.from_numpy(np.array(gradient)).permute(2, 0, 1)[None]), (64, 96)))
    assert np.array_equal(pixels(image), enlarged[0].permute(1, 2, 0).numpy())
    assert all(torch.equal(to_uint8(x0), enlarged) for x0 in estimates), "previews show the image, not the detail"


def test_detail_is_scaled_and_thresholds_apply_to_pixels():
    class Step(nn.Module):  # detail of +3 in the left half, -20 in the right
        def forward(self, x: Tensor, noise: Tensor, *, low_res: Tensor, low_res_noise: Tensor) -> Tensor:
            detail = torch.full_like(x, 3.0)
            detail[..., 32:] = -20
            return detail

    sampling = SamplingConfig(steps=3, threshold="static")
    config = dataclasses.replace(recording_cascade()[0].stages[0].config, detail_std=0.1, sampling=sampling)
    (image,) = Cascade([Stage(config, Step())]).sample([""], start=[Image.new("RGB", (16, 16), (128,) * 3)], **QUICK)
    assert set(pixels(image)[:, :32].flatten()) == {round(128 + 0.3 * 127.5)}
    assert set(pixels(image)[:, 32:].flatten()) == {0}
