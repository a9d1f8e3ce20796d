"""KID against torchmetrics and its expectation; CMMD against the sum written out."""

import math

import numpy as np
import pytest
import torch

from imagen.evaluate.metrics import kernel
from imagen.evaluate.metrics.kernel import cmmd_interval, kid, kid_interval


def test_kid_of_torchmetrics() -> None:
    theirs = pytest.importorskip("torchmetrics.image.kid")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 16)), rng.normal(0.3, 1.2, size=(40, 16))
    expected = theirs.poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert kid(a, b) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased() -> None:
    """Two sets of one distribution: 0 on average, also for few images, and the interval holds it."""
    rng = np.random.default_rng(1)
    values = [kid(rng.normal(size=(10, 4)), rng.normal(size=(12, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    x = rng.normal(size=(600, 4))
    near, far = kid_interval(x[:300], x[300:], size=100), kid_interval(x[:300], x[300:] + 1, size=100)
    assert abs(near.value) < 0.1 < far.low < far.value < far.high
    assert near == kid_interval(x[:300], x[300:], size=100), "the same subsets again"


def test_the_interval_of_kid_is_student_t_times_the_standard_error_of_ten_blocks() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    order = np.random.default_rng(0)
    x, y = a[order.permutation(40)], b[order.permutation(40)]
    values = [kid(x[i : i + 4], y[i : i + 4]) for i in range(0, 40, 4)]
    found = kid_interval(a, b, subsets=2)
    error = 2.262 * np.std(values, ddof=1) / 10**0.5
    assert (found.low, found.high) == pytest.approx((found.value - error, found.value + error), rel=1e-9)
    # Four images make two blocks: one degree of freedom.
    found = kid_interval(a[:4], b[:4], subsets=2)
    order = np.random.default_rng(0)
    x, y = a[:4][order.permutation(4)], b[:4][order.permutation(4)]
    first, second = kid(x[:2], y[:2]), kid(x[2:], y[2:])
    assert found.high - found.value == pytest.approx(12.706 * abs(first - second) / 2, rel=1e-9)


def test_the_interval_of_kid_holds_the_expected_distance() -> None:
    """In about 95 % of experiments; the expected distance is that of two large sets."""
    rng = np.random.default_rng(3)
    expected = kid(rng.normal(size=(4000, 2)), rng.normal(0.5, 1, size=(4000, 2)))
    held = 0
    for _ in range(60):
        found = kid_interval(rng.normal(size=(200, 2)), rng.normal(0.5, 1, size=(200, 2)), subsets=4)
        held += found.low <= expected <= found.high
    assert 48 <= held <= 60


def test_cmmd_written_out() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(5, 3)), rng.normal(1, 1, size=(4, 3))

    def mean(xs: np.ndarray, ys: np.ndarray) -> float:
        total = 0.0
        for x in xs:
            for y in ys:
                difference = x / math.dist(x, [0, 0, 0]) - y / math.dist(y, [0, 0, 0])
                total += math.exp(-(difference @ difference) / 200)
        return total / (len(xs) * len(ys))

    assert cmmd_interval(a, b).value == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-9)
    assert cmmd_interval(a, 7 * a).value == pytest.approx(0, abs=1e-9)


def test_the_interval_of_cmmd_has_the_spread_of_independent_samples(monkeypatch) -> None:
    """The half width is about 1.96 standard deviations over independent sets, and does not depend on blocks."""
    rng = np.random.default_rng(4)
    real = rng.normal(1, 1, size=(500, 3))
    sets = [rng.normal(0.5, 1, size=(80, 3)) for _ in range(60)]
    spread = np.std([cmmd_interval(real, each, rounds=2).value for each in sets])
    found = [cmmd_interval(real, each, rounds=40) for each in sets[:5]]
    assert all(each.low < each.value < each.high for each in found)
    assert np.mean([each.high - each.value for each in found]) == pytest.approx(1.96 * spread, rel=0.3)
    monkeypatch.setattr(kernel, "BLOCK", 7)
    assert cmmd_interval(real, sets[0], rounds=40) == pytest.approx(found[0], rel=1e-9)
