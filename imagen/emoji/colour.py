"""Classify the background colour of an image."""

from functools import lru_cache

import numpy as np
import torch

from imagen.emoji.dataset import PALETTE

_FRAME = 1 / 16  # thickness of the outer frame, as a fraction of the shorter side


def background_colour(image: np.ndarray | torch.Tensor) -> str:
    """Return the name in PALETTE nearest in CIELAB to the median of the outer frame of `image` (uint8, HWC or CHW).

    The median per channel is robust to noise and to a drawing that covers less than half of the frame.
    """
    return _nearest(_frame_median(_as_HWC(image)))


def _as_HWC(image: np.ndarray | torch.Tensor) -> np.ndarray:
    array = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
    if array.dtype != np.uint8 or array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(f"expected uint8 of shape HW3 or 3HW, got {array.dtype} of shape {array.shape}")
    return array if array.shape[2] == 3 else array.transpose(1, 2, 0)


def _frame_median(image_HWC: np.ndarray) -> np.ndarray:
    height, width, _ = image_HWC.shape
    inside = np.zeros((height, width), dtype=bool)
    t = max(1, round(_FRAME * min(height, width)))
    inside[t:-t, t:-t] = True
    return np.median(image_HWC[~inside], axis=0)


def _nearest(rgb: np.ndarray) -> str:
    names, lab = _palette_lab()
    return names[int(np.linalg.norm(lab - to_lab(rgb), axis=-1).argmin())]


@lru_cache
def _palette_lab() -> tuple[list[str], np.ndarray]:
    return list(PALETTE), to_lab(np.array(list(PALETTE.values())))


# CIE 15 (L*a*b*) from sRGB (IEC 61966-2-1), white D65.
_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB in [0, 255] to CIELAB; the colour channels are the last axis."""
    c = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_FROM_RGB.T / _XYZ_FROM_RGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
