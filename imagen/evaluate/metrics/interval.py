"""Compute confidence intervals of metrics."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# 97.5 % quantiles of Student's t with 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Interval(NamedTuple):
    """Hold a value and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_values(cls, values: Sequence[float]) -> "Interval":
        """Return the mean of repeated measurements, 1.96 standard errors wide on each side."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            raise ValueError("an interval needs two measurements or more")
        mean, error = float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5)
        return cls(mean, mean - 1.96 * error, mean + 1.96 * error)

    @classmethod
    def of_share(cls, right: float, count: int) -> "Interval":
        """Return a share of correct answers with Wilson's score interval, which also holds at 0 and 1."""
        if not 0 <= right <= count or count == 0:
            raise ValueError(f"{right} of {count}")
        z2, p = 1.96**2, right / count
        centre = (p + z2 / (2 * count)) / (1 + z2 / count)
        half = 1.96 / (1 + z2 / count) * (p * (1 - p) / count + z2 / (4 * count**2)) ** 0.5
        return cls(p, max(centre - half, 0.0), min(centre + half, 1.0))


def bootstrap_error(metric: Callable[[np.ndarray], float], samples: np.ndarray, *, rounds: int, seed: int = 0) -> float:
    """Return the standard deviation of `metric` over `rounds` sets resampled with replacement: its standard error.

    For metrics that depend on the number of distinct samples (FID): their resampled values are biased, but their spread
    is not.
    """
    rng = np.random.default_rng(seed)
    values = [metric(samples[rng.integers(0, len(samples), len(samples))]) for _ in range(rounds)]
    return float(np.std(values, ddof=1))


def bootstrap(
    metric: Callable[[np.ndarray], float], samples: np.ndarray, *, rounds: int = 200, seed: int = 0
) -> Interval:
    """Return `metric(samples)` with the 2.5 and 97.5 % quantiles of its values on resampled sets (with replacement).

    For metrics that do not depend on the number of distinct samples, such as means; for others, see `bootstrap_error`.
    """
    rng = np.random.default_rng(seed)
    values = [metric(samples[rng.integers(0, len(samples), len(samples))]) for _ in range(rounds)]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(metric(samples), float(low), float(high))
