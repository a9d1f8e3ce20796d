"""Measure the error of super-resolution against the original images."""

import math
from collections.abc import Iterable

import numpy as np


def psnr(images: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> float:
    """Return the mean peak signal-to-noise ratio in dB of uint8 images; infinite if one of them is exact."""
    values = []
    for image, reference in zip(images, references, strict=True):
        mse = np.square(image.astype(np.float64) - reference.astype(np.float64)).mean()
        values.append(math.inf if mse == 0 else 10 * math.log10(255**2 / mse))
    return float(np.mean(values))


def colour_error(images: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> tuple[float, float, float]:
    """Return the mean signed error of red, green and blue in levels, for uint8 images [H, W, 3]."""
    differences = [
        image.astype(np.float64).mean((0, 1)) - reference.astype(np.float64).mean((0, 1))
        for image, reference in zip(images, references, strict=True)
    ]
    red, green, blue = np.mean(differences, axis=0)
    return float(red), float(green), float(blue)
