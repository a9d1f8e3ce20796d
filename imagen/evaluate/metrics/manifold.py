"""Compute precision and recall (1904.06991), and density and coverage (2002.09797).

A set's manifold is the union of balls around its features. A ball's radius is the distance to the k-th nearest
neighbour in the set.
"""

from typing import NamedTuple

import numpy as np

from imagen.evaluate.metrics.interval import Interval

PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5  # of the papers
BLOCK = 1024  # rows of distances at a time: memory is bounded by N x 1024


class Manifold(NamedTuple):
    """Hold shares in [0, 1] with intervals; density may exceed 1.

    The intervals assume independent images (Wilson's for shares), although all images are compared with the same balls.
    """

    precision: Interval  # of generated images inside the manifold of the real ones
    recall: Interval  # of real images inside the manifold of the generated ones
    density: Interval  # real balls around a generated image, in units of k
    coverage: Interval  # of real images with a generated one inside their ball


def manifold(
    real_MD: np.ndarray,
    generated_ND: np.ndarray,
    k: int = PRECISION_NEIGHBOURS,
    coverage_k: int = COVERAGE_NEIGHBOURS,
) -> Manifold:
    """Compare two sets of features. Raises ValueError unless each has more than k samples."""
    real_MD, generated_ND = (np.asarray(each, dtype=np.float64) for each in (real_MD, generated_ND))
    if min(len(real_MD), len(generated_ND)) <= max(k, coverage_k):
        raise ValueError(f"each set needs more than {max(k, coverage_k)} images")
    real_M, wide_M = squared_radii(real_MD, k, coverage_k)
    (generated_N,) = squared_radii(generated_ND, k)
    precise = 0
    density: list[np.ndarray] = []
    nearest_M = np.full(len(real_MD), np.inf)
    recalled_M = np.zeros(len(real_MD), dtype=bool)
    for start in range(0, len(generated_ND), BLOCK):
        block = slice(start, start + BLOCK)
        squares_MN = squared_distances(real_MD, generated_ND[block])
        precise += int((squares_MN <= real_M[:, None]).any(0).sum())
        density.append((squares_MN <= wide_M[:, None]).sum(0) / coverage_k)
        recalled_M |= (squares_MN <= generated_N[block][None]).any(1)
        nearest_M = np.minimum(nearest_M, squares_MN.min(1))
    recalled, covered = int(recalled_M.sum()), int((nearest_M <= wide_M).sum())
    M, N = len(real_MD), len(generated_ND)
    return Manifold(
        precision=Interval.of_share(precise, N),
        recall=Interval.of_share(recalled, M),
        density=Interval.of_values(list(np.concatenate(density))),
        coverage=Interval.of_share(covered, M),
    )


def squared_radii(features_ND: np.ndarray, *ks: int) -> np.ndarray:
    """Return the squared distance of each sample to its k-th nearest neighbour other than itself, [len(ks), N]."""
    found = np.empty((len(ks), len(features_ND)))
    for start in range(0, len(features_ND), BLOCK):
        squares_BN = squared_distances(features_ND[start : start + BLOCK], features_ND)
        squares_BN.partition(ks, axis=1)
        found[:, start : start + BLOCK] = squares_BN[:, ks].T
    return found


def squared_distances(a_MD: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances [M, N]."""
    squares_MN: np.ndarray = a_MD @ b_ND.T  # |a - b|^2 = |a|^2 - 2 a.b + |b|^2, in place
    squares_MN *= -2
    squares_MN += np.einsum("md,md->m", a_MD, a_MD)[:, None]
    squares_MN += np.einsum("nd,nd->n", b_ND, b_ND)
    return np.maximum(squares_MN, 0, out=squares_MN)
