"""Maximum mean discrepancy of two sets of features: KID (1801.01401) and CMMD (2401.09603)."""

import numpy as np

from imagen.evaluate.metrics.interval import Interval

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # of the paper's code


def kid(features_MD: np.ndarray, others_ND: np.ndarray) -> float:
    """Kernel distance: the unbiased squared MMD of the kernel (x . y / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    0 for two sets of one distribution, up to a fluctuation of either sign; of few images too, unlike FID.
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
    blocks: int = 10,
    seed: int = 0,
) -> Interval:
    """Return the mean of KID over random subsets (the published form, 100 of 1,000 images), with a 95 % interval.

    Subsets overlap, so their spread is not the error of their mean. The standard error comes from disjoint blocks of
    both sets instead: the spread of their distances, divided by the square root of their number.
    """
    rng = np.random.default_rng(seed)
    a, b = (each[rng.permutation(len(each))] for each in (features_MD, others_ND))
    size = min(size, len(a), len(b))
    drawn = ((a[rng.choice(len(a), size, False)], b[rng.choice(len(b), size, False)]) for _ in range(subsets))
    mean = np.mean([kid(*pair) for pair in drawn])
    blocks = min(blocks, len(a) // 2, len(b) // 2)
    if blocks < 2:
        raise ValueError("an interval needs four images or more in each set")
    each = min(len(a) // blocks, len(b) // blocks, size)
    values = [kid(a[i * each : (i + 1) * each], b[i * each : (i + 1) * each]) for i in range(blocks)]
    error = 1.96 * float(np.std(values, ddof=1)) / blocks**0.5
    return Interval(float(mean), float(mean) - error, float(mean) + error)


def cmmd(features_MD: np.ndarray, others_ND: np.ndarray) -> float:
    """Return CMMD: 1000 times the squared MMD (biased) of a Gaussian kernel of width 10, of normalised CLIP features.

    As the authors' code: the diagonal is included, features are divided by their norms.
    """
    a, b = (_normalised(each) for each in (features_MD, others_ND))
    gamma = 1 / (2 * CMMD_SIGMA**2)

    def mean_kernel(x: np.ndarray, y: np.ndarray) -> float:
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return float(np.exp(-gamma * squares).mean())

    return CMMD_SCALE * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))


def _normalised(features_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(features_ND, dtype=np.float64)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
