import math

import numpy as np
import pytest

from imagen.evaluate.metrics.restoration import colour_error, psnr


def test_psnr_of_a_known_error() -> None:
    truth = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert psnr([truth + 5], [truth]) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr([truth + 5, truth - 10], [truth, truth]) == pytest.approx(20 * math.log10(255 / math.sqrt(50)))
    assert psnr([truth], [truth]) == math.inf


def test_colour_error_is_signed_and_by_channel() -> None:
    truth = np.full((2, 2, 3), 100, dtype=np.uint8)
    shifted = truth + np.array([3, 0, 0], dtype=np.uint8)
    assert colour_error([shifted, truth], [truth, truth]) == (1.5, 0.0, 0.0)
    noisy = truth.copy()
    noisy[0, 0], noisy[1, 1] = 90, 110  # noise is no shift
    assert colour_error([noisy], [truth]) == (0.0, 0.0, 0.0)
