"""Test the errors of super-resolution."""

import math

import numpy as np
import pytest

from imagen.evaluate.metrics.restoration import colour_error, psnr


def test_psnr_of_a_known_error() -> None:
    exact = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert psnr([exact + 5], [exact]) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr([exact + 5, exact - 10], [exact, exact]) == pytest.approx(20 * math.log10(255 / math.sqrt(50)))
    assert psnr([exact], [exact]) == math.inf


def test_colour_error_is_signed_and_per_channel() -> None:
    exact = np.full((2, 2, 3), 100, dtype=np.uint8)
    shifted = exact + np.array([3, 0, 0], dtype=np.uint8)
    assert colour_error([shifted, exact], [exact, exact]) == (1.5, 0.0, 0.0)
    noisy = exact.copy()
    noisy[0, 0], noisy[1, 1] = 90, 110  # noise causes no shift
    assert colour_error([noisy], [exact]) == (0.0, 0.0, 0.0)
