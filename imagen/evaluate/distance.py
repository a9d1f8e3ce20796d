"""Compute the distance between two sets of images."""

import numpy as np


def kid(features_MD: np.ndarray, others_ND: np.ndarray) -> float:
    """Return the kernel distance (KID) of two sets of features, [M, D] and [N, D].

    It is the unbiased squared MMD of the kernel (x . y / D + 1)^3 (Binkowski et al. 2018, eq. 4).
    Its expectation is 0 for two sets from the same distribution, even for few images, unlike that of FID. Single values
    may be negative. Raises ValueError if a set has fewer than two images.
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (features_MD, others_ND))
    M, N, D = len(a), len(b), a.shape[1]
    if min(M, N) < 2:
        raise ValueError("each set needs at least two images")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / D + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - np.trace(aa)) / (M * (M - 1)) + (bb.sum() - np.trace(bb)) / (N * (N - 1))
    return float(within - 2 * kernel(a, b).mean())
