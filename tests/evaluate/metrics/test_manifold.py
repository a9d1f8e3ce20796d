"""Precision, recall, density and coverage against the definitions written out, and on sets whose answer is known."""

import tracemalloc

import numpy as np
import pytest

from imagen.evaluate.metrics import manifold as module
from imagen.evaluate.metrics.interval import Interval, bootstrap
from imagen.evaluate.metrics.manifold import manifold


def written_out(real: np.ndarray, fake: np.ndarray, k: int, wide: int) -> tuple[float, ...]:
    def ball(x: np.ndarray, among: np.ndarray, k: int) -> float:
        return sorted(np.linalg.norm(among - x, axis=1))[k]

    def within(x: np.ndarray, centre: np.ndarray, among: np.ndarray, k: int) -> bool:
        return bool(np.linalg.norm(x - centre) <= ball(centre, among, k))

    return (
        np.mean([any(within(f, r, real, k) for r in real) for f in fake]),
        np.mean([any(within(r, f, fake, k) for f in fake) for r in real]),
        np.sum([[within(f, r, real, wide) for r in real] for f in fake]) / (wide * len(fake)),
        np.mean([any(within(f, r, real, wide) for f in fake) for r in real]),
    )


def values(real: np.ndarray, fake: np.ndarray, *neighbours: int) -> tuple[float, ...]:
    return tuple(found.value for found in manifold(real, fake, *neighbours))


def test_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(31, 3)), rng.normal(0.8, 0.6, size=(23, 3))
    expected = written_out(real, fake, 2, 4)
    assert values(real, fake, 2, 4) == pytest.approx(expected)
    monkeypatch.setattr(module, "BLOCK", 7)
    assert values(real, fake, 2, 4) == pytest.approx(expected)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1


def test_sets_whose_answer_is_known() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(200, 4))
    assert values(real, real)[:2] == (1, 1) and values(real, real)[3] == 1
    assert values(real, real + 100) == (0, 0, 0, 0)
    one_mode = np.repeat(real[:1], 200, 0) + 1e-3 * rng.normal(size=(200, 4))
    precision, recall, _, coverage = values(real, one_mode)
    assert precision == 1 and recall < 0.05 and coverage < 0.1
    with pytest.raises(ValueError, match="more than 5 images"):
        manifold(real[:5], real)


def test_memory_is_bounded_by_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50,000 real images, all distances would take 20 GB."""
    real = np.random.default_rng(3).normal(size=(2000, 4))
    monkeypatch.setattr(module, "BLOCK", 10)
    tracemalloc.start()
    try:
        manifold(real, real[:100])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * real.shape[0] * 10 * 8


def test_intervals() -> None:
    """Wilson's interval against its published example (8 of 10: 0.49 to 0.943), and a mean's against its definition."""
    assert Interval.of_share(8, 10) == pytest.approx((0.8, 0.490, 0.943), abs=1e-3)
    assert Interval.of_share(0, 10).low == 0 and Interval.of_share(10, 10).high == 1
    assert Interval.of_values([1.0, 3.0]) == pytest.approx((2, 2 - 1.96, 2 + 1.96))
    x = np.random.default_rng(2).normal(5, 2, 400)
    found = bootstrap(lambda values: float(values.mean()), x)
    assert found.value == x.mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.15)
