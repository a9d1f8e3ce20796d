"""Compare denoiser wrappers with two separate forward passes, and thresholding with NumPy."""

import numpy as np
import pytest
import torch

from imagen.diffusion.guidance import (
    ClassifierFree,
    DynamicThreshold,
    Estimate,
    StaticThreshold,
    predict_x0,
)
from imagen.diffusion.objective import target
from imagen.diffusion.schedule import diffuse, noise_label
from imagen.errors import UserError

F64 = torch.float64


class Network:
    """A network with 2C outputs that does not mix images and records its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, noise, *, text, low_res):
        self.batches.append(len(x))
        mean = x * 0.5 + text.mean((1, 2)).reshape(-1, 1, 1, 1) + low_res + noise.reshape(-1, 1, 1, 1) / 1000
        return torch.cat([mean, torch.tanh(mean)], dim=1)


@pytest.fixture
def setup():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 4, 4, generator=g, dtype=F64)
    cond = {"text": torch.randn(3, 5, 2, generator=g, dtype=F64), "low_res": torch.randn(x.shape, generator=g).double()}
    uncond = {"text": torch.zeros(3, 5, 2, dtype=F64)}
    network = Network()
    return network, predict_x0(network, "v"), x, cond, uncond


@pytest.mark.parametrize("weight", [0.0, 1.35, 8.0])
def test_one_batched_forward_equals_two(setup, weight):
    network, model, x, cond, uncond = setup
    logsnr = torch.tensor([-3.0, 0.0, 5.0], dtype=F64)
    guided = ClassifierFree(model, cond, uncond, weight)(x, logsnr)
    assert network.batches == [6]
    with_text, without = model(x, logsnr, **cond), model(x, logsnr, **{**cond, **uncond})
    torch.testing.assert_close(guided.x0, without.x0 + weight * (with_text.x0 - without.x0))
    torch.testing.assert_close(guided.variance, with_text.variance)


def test_scale_one_evaluates_no_unconditional_estimate(setup):
    network, model, x, cond, uncond = setup
    logsnr = torch.zeros(3, dtype=F64)
    guided = ClassifierFree(model, cond, uncond, 1.0)(x, logsnr)
    assert network.batches == [3]
    torch.testing.assert_close(guided, model(x, logsnr, **cond))


def test_guidance_applies_within_its_interval(setup):
    network, model, x, cond, uncond = setup
    guide = ClassifierFree(model, cond, uncond, 4.0, interval=(-1.0, 2.0))
    always = ClassifierFree(model, cond, uncond, 4.0)
    for logsnr, inside in ((-1.1, False), (-1.0, True), (0.0, True), (2.0, True), (2.1, False)):
        logsnr_B = torch.full((3,), logsnr, dtype=F64)
        network.batches.clear()
        guided = guide(x, logsnr_B)
        assert network.batches == ([6] if inside else [3])
        expected = always(x, logsnr_B) if inside else model(x, logsnr_B, **cond)
        torch.testing.assert_close(guided, expected)
    mixed = torch.tensor([-5.0, 0.0, 5.0], dtype=F64)  # images at different noise levels: each according to its own
    guided = guide(x, mixed).x0
    torch.testing.assert_close(guided[1], always(x, mixed).x0[1])
    torch.testing.assert_close(guided[[0, 2]], model(x, mixed, **cond).x0[[0, 2]])


def test_unconditional_input_of_another_shape_is_rejected(setup):
    _, model, _, cond, _ = setup
    with pytest.raises(ValueError, match=r"text: conditional is \(3, 5, 2\), unconditional \(3, 1, 2\)"):
        ClassifierFree(model, cond, {"text": torch.zeros(3, 1, 2)}, 2.0)
    with pytest.raises(ValueError, match="txt: conditional is absent"):
        ClassifierFree(model, cond, {"txt": torch.zeros(3, 5, 2)}, 2.0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_predict_x0_converts_every_prediction_type(prediction):
    x0, eps = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    logsnr = torch.tensor([-15.0, -1.0, 1.0, 15.0], dtype=F64)
    seen = {}

    def network(x, noise, **cond):
        seen.update(cond, noise=noise)
        return target(prediction, x0, eps, logsnr)

    text = torch.ones(4, 1, 1)
    estimate = predict_x0(network, prediction)(diffuse(x0, eps, logsnr), logsnr, text=text)
    torch.testing.assert_close(estimate.x0, x0)
    assert estimate.variance is None and seen["text"] is text
    torch.testing.assert_close(seen["noise"], noise_label(logsnr))


def test_predict_x0_splits_the_variance_and_returns_float32():
    x = torch.randn(2, 3, 2, 2)
    mean, v = torch.randn(2, 3, 2, 2).bfloat16(), (torch.rand(2, 3, 2, 2) * 2 - 1).bfloat16()
    logsnr = torch.tensor([-8.0, 3.0])
    estimate = predict_x0(lambda x, noise: torch.cat([mean, v], 1), "eps")(x, logsnr)
    plain = predict_x0(lambda x, noise: mean.float(), "eps")(x, logsnr)
    assert estimate.x0.dtype == torch.float32
    torch.testing.assert_close(estimate.x0, plain.x0, rtol=0, atol=0)
    torch.testing.assert_close(estimate.variance, (v.float() + 1) / 2, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("percentile", "max_scale"), [(0.995, None), (0.95, 1.5), (0.9, 1.0), (0.5, None), (1.0, None)]
)
def test_dynamic_threshold_equals_numpy(percentile, max_scale):
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 3, 7, 5, generator=g, dtype=F64) * torch.tensor([0.1, 1.0, 2.0, 5.0]).reshape(4, 1, 1, 1)
    fraction = torch.rand(4, 3, 7, 5)
    denoise = DynamicThreshold(lambda x, logsnr: Estimate(x0, fraction), percentile, max_scale)
    result = denoise(x0, torch.zeros(4))
    for picture, thresholded in zip(x0.numpy(), result.x0.numpy(), strict=True):
        s = np.clip(np.quantile(np.abs(picture), percentile), 1, max_scale)
        np.testing.assert_allclose(thresholded, np.clip(picture, -s, s) / s, rtol=1e-12)
    assert result.x0.abs().max() <= 1 and result.variance is fraction
    # The scale s is at least 1, so images of low contrast are unchanged.
    torch.testing.assert_close(result.x0[0], x0[0].clamp(-1, 1))


def test_dynamic_threshold_of_an_image_beyond_the_limit_of_torch_quantile():
    x0 = torch.linspace(-2, 2, 3 * 2400 * 2400).reshape(1, 3, 2400, 2400)  # 17.3 M values; |x0| is uniform in [0, 2]
    result = DynamicThreshold(lambda x, logsnr: Estimate(x0), 0.995)(x0, torch.zeros(1)).x0
    torch.testing.assert_close(result, (x0 / 1.99).clamp(-1, 1), rtol=0, atol=1e-6)


def test_dynamic_threshold_percentile_is_a_fraction():
    with pytest.raises(UserError, match=r"99\.5"):
        DynamicThreshold(lambda x, logsnr: Estimate(x), 99.5)


def test_static_threshold_clips():
    x0 = torch.tensor([[-3.0, -1.0, 0.2, 7.0]])
    result = StaticThreshold(lambda x, logsnr: Estimate(x0, x0))(x0, torch.zeros(1))
    assert result.x0.tolist() == [[-1.0, -1.0, pytest.approx(0.2), 1.0]] and result.variance is x0
