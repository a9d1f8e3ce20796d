"""Test the detail that super-resolution stages generate: its blurred reference, and that it can be undone."""

import math

import pytest
import torch

from imagen.errors import UserError
from imagen.models.config import Level, UNetConfig
from imagen.stage.config import StageConfig
from imagen.stage.detail import DetailTransform, blur


def config(**fields):
    unet = UNetConfig(levels=(Level(channels=8, blocks=1, stride=1),), low_res=True)
    return StageConfig(resolution=32, low_resolution=8, unet=unet, **fields)


@pytest.mark.parametrize("period", [8.0, 16.0, 64.0])
def test_blur_attenuates_waves_as_a_gaussian_does(period):
    """The Fourier transform of a Gaussian of variance sigma^2 is exp(-2 pi^2 sigma^2 f^2)."""
    sigma = 3.0
    x = torch.arange(256, dtype=torch.float64)
    wave = (2 * math.pi * x / period).sin().expand(1, 2, 256, 256)
    for waves in (wave, wave.transpose(2, 3)):
        blurred = blur(waves, sigma)
        expected = waves * math.exp(-2 * (math.pi * sigma / period) ** 2)
        inside = (..., slice(16, -16), slice(16, -16))
        # 0.3 % of the Gaussian lie beyond 3 sigma.
        torch.testing.assert_close(blurred[inside], expected[inside], rtol=0, atol=6e-3)


def test_blur_keeps_flat_images_and_their_dtype():
    flat = torch.full((2, 3, 16, 24), 0.3)
    blurred = blur(flat, 5.0)
    assert blurred.dtype == torch.float32
    torch.testing.assert_close(blurred, flat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("detail_blur", [0.0, 1.5])
def test_detail_is_relative_to_the_blurred_upsampled_image(detail_blur):
    image, upsampled = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    detail = DetailTransform.of(config(detail_std=0.2, detail_blur=detail_blur), upsampled)
    reference = blur(upsampled, 1.5 * 4) if detail_blur else upsampled  # 8 -> 32: a low-resolution pixel is 4 wide
    torch.testing.assert_close(detail.encode(image), (image - reference) / 0.2)
    torch.testing.assert_close(detail.decode(detail.encode(image)), image)
    assert DetailTransform.of(config(), upsampled) is None


def test_a_blur_needs_a_detail():
    with pytest.raises(UserError, match=r"stage.detail_blur has no effect without stage.detail_std"):
        config(detail_blur=1.0).check("stage")
