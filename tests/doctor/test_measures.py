"""Measurements of the doctor against direct computation."""

import math

import pytest
import torch

from imagen.data.loading.batches import Batch
from imagen.diffusion.objective import ObjectiveConfig, to_x0
from imagen.diffusion.schedule import diffuse
from imagen.doctor.loss import visible_levels
from imagen.doctor.network import trivial, x0_errors
from imagen.doctor.samples import contrast, diversity, roughness, saturated
from imagen.models.config import Level, UNetConfig
from imagen.stage.config import StageConfig
from imagen.stage.resize import upsample


def config(prediction="x0", **fields):
    unet = UNetConfig(levels=(Level(channels=8, blocks=1, stride=1),), low_res="low_resolution" in fields)
    return StageConfig(resolution=32, unet=unet, objective=ObjectiveConfig(prediction=prediction), **fields)


def batch(low=None):
    image = torch.randint(40, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    return Batch(0, [""] * 16, [""] * 16, image, low, None, None)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("logsnr", [-3.0, 0.0, 3.0])
def test_trivial_predictors(prediction, logsnr):
    """The closed form is the error of networks that output zero, the mean, or their input."""
    x0 = batch().image.float() / 127.5 - 1
    logsnr_B = torch.full((16,), logsnr)
    x = diffuse(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), logsnr_B)
    estimates = {
        "zero": to_x0(prediction, torch.zeros_like(x), x, logsnr_B),
        "mean": x0.mean((0, 2, 3), keepdim=True),
        "identity": x,
    }
    errors = trivial(config(prediction), [batch()]).errors(config(prediction), logsnr)
    assert errors == {
        name: pytest.approx(float((estimate - x0).square().mean()), rel=0.03) for name, estimate in estimates.items()
    }


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_errors_of_a_network_that_outputs_zero(prediction):
    measured = x0_errors(config(prediction), lambda x, noise: x * 0, batch(), 0.0, torch.device("cpu"))
    expected = trivial(config(prediction), [batch()]).errors(config(prediction), 0.0)["zero"]
    assert float(measured.mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("detail_std", "detail_blur"), [(None, 0.0), (0.2, 0.0), (0.2, 1.5)])
def test_the_upsampled_image_is_a_trivial_predictor(detail_std, detail_blur):
    low = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(2)).byte()
    stage = config(low_resolution=8, detail_std=detail_std, detail_blur=detail_blur)
    error = (upsample(low / 127.5 - 1, (32, 32)) - (batch().image / 127.5 - 1)).square().mean() / (detail_std or 1) ** 2
    assert trivial(stage, [batch(low)]).errors(stage, 0.0)["upsampled"] == pytest.approx(float(error), rel=1e-4)


def test_levels_of_a_stage_that_generates_detail_are_visible_in_pixels():
    """At detail_std 0.1 the noise of log-SNR 0 is 0.1: about that of log-SNR 4.6 in pixels."""
    assert visible_levels(config()) == (-6, -4, -2, 0, 2, 4)
    assert visible_levels(config(low_resolution=8, detail_std=0.1)) == (-6, -4, -2)
    assert visible_levels(config(low_resolution=8, detail_std=0.5)) == (-6, -4, -2, 0, 2)


def test_roughness_contrast_diversity_and_saturation():
    noise = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert roughness(noise) == pytest.approx(1, abs=0.02)
    assert contrast(noise) == pytest.approx(1, abs=0.02)
    assert diversity(noise) == pytest.approx(math.sqrt(2), abs=0.02)
    ramp = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
    assert roughness(ramp) == pytest.approx((2 / 63) ** 2 / 2 / (2 * float(ramp[0, 0].var())), rel=1e-3)
    assert diversity(ramp) == 0 and saturated(ramp) == pytest.approx(2 / 64)
    assert math.isnan(roughness(ramp * 0))
