"""Compute the maximum mean discrepancy of two sets of features: KID (1801.01401) and CMMD (2401.09603)."""

import numpy as np

from imagen.evaluate.metrics.interval import STUDENT, Interval

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # of the paper's code
BLOCKS = len(STUDENT) + 1  # disjoint blocks of images, from which KID's standard error is estimated
BLOCK = 512  # rows of a kernel matrix at a time, so that memory is linear in the number of images


def kid(features_MD: np.ndarray, others_ND: np.ndarray) -> float:
    """Return the kernel distance: the unbiased squared MMD of the kernel (x . y / D + 1)^3 (1801.01401, eq. 4).

    For two sets of one distribution it fluctuates around 0. Unlike FID, it has no bias for few images.
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (features_MD, others_ND))
    M, N, D = len(a), len(b), a.shape[1]
    if min(M, N) < 2:
        raise ValueError("each set needs two images or more")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / D + 1) ** 3

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - np.trace(aa)) / (M * (M - 1)) + (bb.sum() - np.trace(bb)) / (N * (N - 1))
    return float(within - 2 * kernel(a, b).mean())


def kid_interval(
    features_MD: np.ndarray,
    others_ND: np.ndarray,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the mean of KID over random subsets (the published form, 100 of 1,000 images), with a 95 % interval.

    Subsets overlap, so their spread is not the error of their mean. The standard error comes from disjoint blocks of
    both sets instead, ten of them if there are enough images: the spread of their distances, divided by the square root
    of their number. The interval is as wide as Student's t with so few blocks.
    """
    rng = np.random.default_rng(seed)
    a, b = (each[rng.permutation(len(each))] for each in (features_MD, others_ND))
    size = min(size, len(a), len(b))
    drawn = ((a[rng.choice(len(a), size, False)], b[rng.choice(len(b), size, False)]) for _ in range(subsets))
    mean = np.mean([kid(*pair) for pair in drawn])
    blocks = min(BLOCKS, len(a) // 2, len(b) // 2)
    if blocks < 2:
        raise ValueError("an interval needs four images or more in each set")
    each = min(len(a) // blocks, len(b) // blocks, size)
    values = [kid(a[i * each : (i + 1) * each], b[i * each : (i + 1) * each]) for i in range(blocks)]
    error = STUDENT[blocks - 2] * float(np.std(values, ddof=1)) / blocks**0.5
    return Interval(float(mean), float(mean) - error, float(mean) + error)


def cmmd_interval(real_MD: np.ndarray, generated_ND: np.ndarray, *, rounds: int = 20, seed: int = 0) -> Interval:
    """Return CMMD, 1.96 standard errors wide on each side.

    CMMD is 1000 times the biased squared MMD of normalised CLIP features, with a Gaussian kernel of width 10. As in the
    authors' code, the diagonals of the kernel matrices are included.

    The standard error is the spread over `rounds` bootstrap samples of the generated set, as for the Fréchet distance:
    repeated images bias a sample's distance upward.
    """
    N = len(generated_ND)
    rng = np.random.default_rng(seed)
    drawn = [np.bincount(rng.integers(0, N, N), minlength=N) / N for _ in range(rounds)]
    value, *resampled = _weighted_cmmd(real_MD, generated_ND, np.stack([np.full(N, 1 / N), *drawn]))
    error = 1.96 * float(np.std(resampled, ddof=1))
    return Interval(float(value), max(float(value) - error, 0.0), float(value) + error)


def _weighted_cmmd(features_MD: np.ndarray, others_ND: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Return CMMD [R] between `features_MD` and R weightings of `others_ND`, whose weights add up to 1."""
    a_MD, b_ND = _normalised(features_MD), _normalised(others_ND)
    weights_NR = weights_RN.T
    within_a, between_R, within_b_R = 0.0, np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
    for start in range(0, len(a_MD), BLOCK):
        block = a_MD[start : start + BLOCK]
        within_a += float(_gaussian(block, a_MD).sum())
        between_R += (_gaussian(block, b_ND) @ weights_NR).sum(0)
    for start in range(0, len(b_ND), BLOCK):
        rows = slice(start, start + BLOCK)
        within_b_R += (weights_NR[rows] * (_gaussian(b_ND[rows], b_ND) @ weights_NR)).sum(0)
    M = len(a_MD)
    return CMMD_SCALE * (within_a / M**2 + within_b_R - 2 * between_R / M)


def _gaussian(x_MD: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel [M, N] of two sets of unit vectors."""
    return np.exp((x_MD @ y_ND.T - 1) / CMMD_SIGMA**2)  # |x - y|^2 = 2 - 2 x.y


def _normalised(features_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(features_ND, dtype=np.float64)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
