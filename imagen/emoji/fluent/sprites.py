"""Drawings as pixels: rasterised at the size asked for, or, for small pictures, made of one sprite of each."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from imagen.emoji.openmoji import drawn_box, rasterise
from imagen.emoji.styles import Icon, icons

SPRITE = 192  # pixels of a drawing's square
MARGIN = 48  # transparent pixels around it, so that windows may reach beyond it
SMALL = 128  # pictures up to this size are made of sprites: 10 times faster, within a level or two of the rasteriser

Box = tuple[float, float, float, float]  # left, top, right, bottom


@cache
def box_of(file: str, icon: str) -> Box:
    """What is drawn, in fractions of the drawing's square."""
    drawing = rasterise(_element(icons(file)[icon], (0, 0, 1, 1), 72, 72))
    return drawn_box(drawing, f"{icon} in {file}")


def layer(file: str, icon: str, side: float, x: float, y: float, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The drawing in a square of `side` around (x, y), all in fractions of a picture of `size` pixels.

    Returns float32 RGBA [h, w, 4] in [0, 255], colours multiplied by alpha, of the pixels that it touches, and the
    (left, top) pixel. Pixels beyond the picture are left out.
    """
    left, top, right, bottom = box_of(file, icon)
    x0, y0 = x - side / 2, y - side / 2
    touched = (
        max(0, math.floor((x0 + left * side) * size)),
        max(0, math.floor((y0 + top * side) * size)),
        min(size, math.ceil((x0 + right * side) * size)),
        min(size, math.ceil((y0 + bottom * side) * size)),
    )
    width, height = touched[2] - touched[0], touched[3] - touched[1]
    # The touched pixels in fractions of the drawing's square.
    window: Box = (
        (touched[0] / size - x0) / side,
        (touched[1] / size - y0) / side,
        (touched[2] / size - x0) / side,
        (touched[3] / size - y0) / side,
    )
    if size <= SMALL:
        box = (
            MARGIN + SPRITE * window[0],
            MARGIN + SPRITE * window[1],
            MARGIN + SPRITE * window[2],
            MARGIN + SPRITE * window[3],
        )
        pixels = _sprite(file, icon).resize((width, height), Image.Resampling.HAMMING, box=box)
    else:
        pixels = rasterise(_element(icons(file)[icon], window, width, height)).convert("RGBa")
    return np.asarray(pixels, dtype=np.float32), touched[:2]


def alone(file: str, icon: str, size: int = 96) -> Image.Image:
    """What is drawn, RGBA, in a square of `size` pixels that its longer side fills."""
    left, top, right, bottom = (MARGIN + SPRITE * edge for edge in box_of(file, icon))
    half, x, y = max(right - left, bottom - top) / 2, (left + right) / 2, (top + bottom) / 2
    box = (x - half, y - half, x + half, y + half)
    return _sprite(file, icon).resize((size, size), Image.Resampling.HAMMING, box=box).convert("RGBA")


@cache
def _sprite(file: str, icon: str) -> Image.Image:
    """The drawing with a margin, RGBa: colours multiplied by alpha."""
    # The rasteriser draws the square alone: asked for more, it fails on some drawings with filters.
    square = rasterise(_element(icons(file)[icon], (0, 0, 1, 1), SPRITE, SPRITE)).convert("RGBa")
    return ImageOps.expand(square, MARGIN)


def _element(icon: Icon, window: Box, width: int, height: int) -> str:
    """The part in `window` (left, top, right, bottom in fractions of the square) of a drawing as an <svg> element."""
    left, top, w, h = (float(value) for value in icon.view.split())
    view = (left + window[0] * w, top + window[1] * h, (window[2] - window[0]) * w, (window[3] - window[1]) * h)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" preserveAspectRatio="none"'
        f' viewBox="{" ".join(f"{value:.6f}" for value in view)}">{icon.body}</svg>'
    )
