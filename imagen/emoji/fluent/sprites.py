"""Render drawings: rasterised at the requested size, or, for small images, resampled from one sprite per drawing."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from imagen.emoji.openmoji import bounding_box, rasterise
from imagen.emoji.styles import Icon, icons

SPRITE = 192  # pixels, side of a drawing's square
MARGIN = 48  # transparent pixels around the square, so that resampling may read beyond it
SMALL = 128  # images up to this size use sprites: 10 times faster, within one or two levels of the rasteriser

Box = tuple[float, float, float, float]  # left, top, right, bottom


@cache
def drawing_box(file: str, icon: str) -> Box:
    """Return the box around the visible pixels, in fractions of the drawing's square."""
    drawing = rasterise(_element(icons(file)[icon], (0, 0, 1, 1), 72, 72))
    return bounding_box(drawing, f"{icon} in {file}")


def layer(file: str, icon: str, side: float, x: float, y: float, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Render a drawing in a square of `side` around (x, y), all in fractions of an image of `size` pixels.

    Returns the pixels that it touches inside the image, as float32 RGBA [h, w, 4] in [0, 255] with premultiplied alpha,
    and the (left, top) pixel.
    """
    left, top, right, bottom = drawing_box(file, icon)
    x0, y0 = x - side / 2, y - side / 2
    touched = (
        max(0, math.floor((x0 + left * side) * size)),
        max(0, math.floor((y0 + top * side) * size)),
        min(size, math.ceil((x0 + right * side) * size)),
        min(size, math.ceil((y0 + bottom * side) * size)),
    )
    width, height = touched[2] - touched[0], touched[3] - touched[1]
    # The region of the touched pixels, in fractions of the drawing's square.
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


def cropped_sprite(file: str, icon: str, size: int = 96) -> Image.Image:
    """Return a drawing as RGBA, cropped to a square of `size` pixels that the longer side of its box fills."""
    left, top, right, bottom = (MARGIN + SPRITE * edge for edge in drawing_box(file, icon))
    half, x, y = max(right - left, bottom - top) / 2, (left + right) / 2, (top + bottom) / 2
    box = (x - half, y - half, x + half, y + half)
    return _sprite(file, icon).resize((size, size), Image.Resampling.HAMMING, box=box).convert("RGBA")


@cache
def _sprite(file: str, icon: str) -> Image.Image:
    """Return the drawing with a margin, in mode RGBa (premultiplied alpha)."""
    # Rasterise the square only, because the rasteriser fails on some drawings with filters if the view is larger.
    square = rasterise(_element(icons(file)[icon], (0, 0, 1, 1), SPRITE, SPRITE)).convert("RGBa")
    return ImageOps.expand(square, MARGIN)


def _element(icon: Icon, window: Box, width: int, height: int) -> str:
    """Return a region of a drawing as an <svg> element; `window` is in fractions of the drawing's square."""
    left, top, w, h = (float(value) for value in icon.view.split())
    view = (left + window[0] * w, top + window[1] * h, (window[2] - window[0]) * w, (window[3] - window[1]) * h)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" preserveAspectRatio="none"'
        f' viewBox="{" ".join(f"{value:.6f}" for value in view)}">{icon.body}</svg>'
    )
