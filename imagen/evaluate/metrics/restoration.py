"""Measure the error of super-resolution against the original images."""

import math
from collections.abc import Iterable

import numpy as np


def psnr(pictures: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> float:
    """Return the mean peak signal-to-noise ratio in dB of uint8 images; infinite if one is exact."""
    values = []
    for picture, truth in zip(pictures, truths, strict=True):
        mse = np.square(picture.astype(np.float64) - truth.astype(np.float64)).mean()
        values.append(math.inf if mse == 0 else 10 * math.log10(255**2 / mse))
    return float(np.mean(values))


def colour_error(pictures: Iterable[np.ndarray], truths: Iterable[np.ndarray]) -> tuple[float, float, float]:
    """Return the colour shift: mean signed difference in red, green and blue of uint8 images [H, W, 3], in levels."""
    differences = [
        picture.astype(np.float64).mean((0, 1)) - truth.astype(np.float64).mean((0, 1))
        for picture, truth in zip(pictures, truths, strict=True)
    ]
    red, green, blue = np.mean(differences, axis=0)
    return float(red), float(green), float(blue)
