"""Degrade original drawings like outputs of a base model, so that super-resolution learns to correct its errors.

Drawings are warped and blurred. Training itself adds noise (conditioning augmentation). Colours are not changed: the
colour error of a base cannot be inferred from its image, so a network trained on shifted colours would learn to
generate random shifts.
"""

import random

import numpy as np
from PIL import Image

WARP = 0.6  # pixels, maximum standard deviation of the shifts
BLUR = 0.9  # pixels, maximum standard deviation of the kernel
CELLS = 6  # side of the grid of random shifts
INTACT = 0.2  # fraction of the images that are left unchanged


def degraded(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return `pixels` (uint8 [S, S, 3]) warped and blurred by random amounts, or unchanged with probability INTACT."""
    if rng.random() < INTACT:
        return pixels
    size = len(pixels)
    strength, sigma = WARP * rng.random(), BLUR * rng.random()
    grid = np.array([rng.gauss(0, strength) for _ in range(2 * CELLS**2)], dtype=np.float32).reshape(2, CELLS, CELLS)
    dx, dy = (np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in grid)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    warped = _bilinear(pixels.astype(np.float32), rows + dy, columns + dx)
    return _blurred(warped, sigma).round().clip(0, 255).astype(np.uint8)


def _bilinear(pixels: np.ndarray, y_HW: np.ndarray, x_HW: np.ndarray) -> np.ndarray:
    """Interpolate at positions given in pixels; positions outside the image are moved to its border."""
    most = len(pixels) - 1
    y_HW, x_HW = y_HW.clip(0, most), x_HW.clip(0, most)
    top, left = (np.minimum(each.astype(int), most - 1) for each in (y_HW, x_HW))
    down, right = (y_HW - top)[..., None], (x_HW - left)[..., None]
    above = pixels[top, left] * (1 - right) + pixels[top, left + 1] * right
    below = pixels[top + 1, left] * (1 - right) + pixels[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve with a Gaussian of standard deviation `sigma` pixels; the border is repeated."""
    if sigma < 0.1:
        return pixels
    reach = 3
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(pixels, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        length = pixels.shape[axis]
        shifted = [w * padded.take(range(k, k + length), axis=axis) for k, w in enumerate(weights)]
        pixels = np.sum(shifted, axis=0)
    return pixels
