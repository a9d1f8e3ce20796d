"""Compute the Fréchet distance of two sets of features; FID is that of Inception's features (1706.08500)."""

from dataclasses import dataclass, field

import numpy as np

from imagen.evaluate.metrics.interval import Interval, bootstrap_error


@dataclass
class Moments:
    """Accumulate the count, the sum and the sum of outer products of features, batch by batch; `+` merges two."""

    dimension: int
    count: int = 0
    total_D: np.ndarray = field(init=False)
    outer_DD: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.total_D = np.zeros(self.dimension)
        self.outer_DD = np.zeros((self.dimension, self.dimension))

    def add(self, features_ND: np.ndarray) -> None:
        """Add a batch of features [N, D]."""
        x_ND = np.asarray(features_ND, dtype=np.float64)
        if x_ND.ndim != 2 or x_ND.shape[1] != self.dimension:
            raise ValueError(f"features are {list(x_ND.shape)}; expected [N, {self.dimension}]")
        self.count += len(x_ND)
        self.total_D += x_ND.sum(0)
        self.outer_DD += x_ND.T @ x_ND

    def __add__(self, other: "Moments") -> "Moments":
        if other.dimension != self.dimension:
            raise ValueError(f"moments of {self.dimension} and {other.dimension} dimensions")
        both = Moments(self.dimension, self.count + other.count)
        both.total_D, both.outer_DD = self.total_D + other.total_D, self.outer_DD + other.outer_DD
        return both

    @property
    def mean_D(self) -> np.ndarray:
        return self.total_D / self.count

    @property
    def covariance_DD(self) -> np.ndarray:
        """The unbiased covariance, as `np.cov`. Raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError("a covariance needs two images or more")
        mean_D = self.mean_D
        return (self.outer_DD - self.count * np.outer(mean_D, mean_D)) / (self.count - 1)


def moments(features_ND: np.ndarray) -> Moments:
    """Return the moments of features [N, D]."""
    found = Moments(np.asarray(features_ND).shape[1])
    found.add(features_ND)
    return found


def frechet_distance(a: Moments, b: Moments, root_DD: np.ndarray | None = None) -> float:
    """Return |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), >= 0.

    root_DD: the symmetric root of C_a, if it is known.

    The trace of the root is the sum of the singular values of C_a^(1/2) C_b^(1/2): symmetric roots by eigenvalues,
    exact for singular covariances too, where the general matrix root that other implementations take is not.
    """
    A_DD, B_DD = a.covariance_DD, b.covariance_DD
    root_DD = _root(A_DD) if root_DD is None else root_DD
    of_root = np.linalg.svd(root_DD @ _root(B_DD), compute_uv=False).sum()
    distance = np.square(a.mean_D - b.mean_D).sum() + np.trace(A_DD) + np.trace(B_DD) - 2 * of_root
    return max(float(distance), 0.0)  # rounding makes it slightly negative for equal sets


def frechet_interval(real_MD: np.ndarray, generated_ND: np.ndarray, *, rounds: int = 8, seed: int = 0) -> Interval:
    """Return the Fréchet distance of two sets of features, 1.96 standard errors wide on each side.

    The standard error is the spread over `rounds` bootstrap samples of the generated set. Their mean is not used: a
    sample has fewer distinct images, and the distance is biased upward for few images. The real set is taken as fixed.
    """
    real = moments(real_MD)
    root_DD = _root(real.covariance_DD)

    def distance(features_ND: np.ndarray) -> float:
        return frechet_distance(real, moments(features_ND), root_DD)

    value, error = distance(generated_ND), 1.96 * bootstrap_error(distance, generated_ND, rounds=rounds, seed=seed)
    return Interval(value, max(value - error, 0.0), value + error)


def _root(C_DD: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a covariance; eigenvalues below 0 are rounding."""
    values_D, vectors_DD = np.linalg.eigh(C_DD)
    return (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T
