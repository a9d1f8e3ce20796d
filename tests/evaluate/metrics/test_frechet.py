"""The Fréchet distance against its closed form, scipy's matrix root, and torchmetrics."""

import numpy as np
import pytest
import torch
from torch import nn

from imagen.evaluate.metrics.frechet import Moments, frechet_distance, frechet_interval, moments


def features(n: int, d: int, seed: int, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ (spread * rng.normal(size=(d, d))) + mean


def exact(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments that have exactly this mean and covariance."""
    count = 1000
    found = Moments(len(mean), count)
    found.total_D = count * mean
    found.outer_DD = (count - 1) * covariance + count * np.outer(mean, mean)
    return found


def test_gaussians_in_closed_form() -> None:
    """Of commuting covariances: |mu|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.1, 4, (2, 6))
    mean_a, mean_b = rng.normal(size=(2, 6))
    found = frechet_distance(exact(mean_a, (basis * a) @ basis.T), exact(mean_b, (basis * b) @ basis.T))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_general_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = moments(features(500, 12, 0)), moments(features(400, 12, 1, 0.5, 0.7))
    root = linalg.sqrtm(a.covariance_DD @ b.covariance_DD).real
    expected = ((a.mean_D - b.mean_D) ** 2).sum() + np.trace(a.covariance_DD + b.covariance_DD - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class AsTheyAre(nn.Module):
        num_features = 8

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :8]

    real, generated = features(300, 8, 2), features(200, 8, 3, 0.2)
    theirs = fid.FrechetInceptionDistance(feature=AsTheyAre(), normalize=True, input_img_size=(8, 1, 1))
    theirs.set_dtype(torch.float64)
    for value, is_real in ((real, True), (generated, False)):
        theirs.update(torch.from_numpy(value).reshape(-1, 8, 1, 1), real=is_real)
    assert frechet_distance(moments(real), moments(generated)) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_singular_covariances() -> None:
    """Fewer samples than dimensions: a set has no distance to itself, and a shifted one the square of the shift."""
    x = features(5, 30, 4)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(x), moments(x + 0.1)) == pytest.approx(30 * 0.01, rel=1e-6)


def test_moments_add_up() -> None:
    x = features(50, 4, 5)
    streamed = Moments(4)
    for part in np.split(x, [7, 20]):
        streamed.add(part)
    merged = moments(x[:30]) + moments(x[30:])
    for found in (streamed, merged):
        np.testing.assert_allclose(found.mean_D, x.mean(0))
        np.testing.assert_allclose(found.covariance_DD, np.cov(x, rowvar=False))
    with pytest.raises(ValueError, match=r"expected \[N, 4\]"):
        streamed.add(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="two images"):
        _ = moments(x[:1]).covariance_DD


def test_the_interval_holds_the_spread_of_independent_samples() -> None:
    """The half width is about 1.96 standard deviations of the distance over independent sets of the same size."""
    rng = np.random.default_rng(5)
    real = rng.normal(size=(4000, 3))
    drawn = [rng.normal(0.5, 1, size=(500, 3)) for _ in range(40)]
    spread = np.std([frechet_distance(moments(real), moments(each)) for each in drawn])
    found = frechet_interval(real, drawn[0], rounds=40)
    assert found.value == frechet_distance(moments(real), moments(drawn[0]))
    assert found.high - found.value == pytest.approx(1.96 * spread, rel=0.4)
