"""Aspect-ratio buckets: the sizes that a stage is trained on, and the one that each image is resized to.

The bucket of an image is a pure function of the image's size and the config: the size with the nearest aspect ratio
among those that the image fills without being upsampled by more than `data.max_enlargement`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagen import limits
from imagen.errors import UserError

Size = tuple[int, int]  # height, width

AUTO = "auto"
MAX_ASPECT = 2.0  # of longer over shorter side, for automatic buckets
_SIZE = re.compile(r"([0-9]{1,5})[x×]([0-9]{1,5})")


def bucket_sizes(buckets: str, resolution: int, unit: int) -> tuple[Size, ...]:
    """Return the bucket sizes that `data.buckets` describes, largest area first.

    buckets: "auto" (all sizes of at most `resolution`^2 pixels with an aspect ratio up to 2), or sizes as WxH,
        separated by commas.
    unit: heights and widths are multiples of this.

    Raises UserError for anything else.
    """
    sizes = _automatic(resolution, unit) if buckets == AUTO else _listed(buckets, unit)
    return tuple(sorted(sizes, key=lambda size: (-size[0] * size[1], size[1])))


def _automatic(resolution: int, unit: int) -> list[Size]:
    area, sizes = resolution**2, []
    for height in range(unit, int(resolution * MAX_ASPECT) + 1, unit):
        width = area // height // unit * unit
        # The widest one of its height; then also the highest of its width, so that the list is symmetrical.
        for size in ((height, width), (width, height)):
            if width and max(size) <= MAX_ASPECT * min(size):
                sizes.append(size)
    sizes = [a for a in dict.fromkeys(sizes) if not any(a != b and a[0] <= b[0] and a[1] <= b[1] for b in sizes)]
    if len(sizes) < 2:
        raise UserError(
            f"data.buckets is {AUTO}, but sides must be divisible by {unit}, which leaves only "
            f"{resolution}x{resolution} up to an aspect ratio of {MAX_ASPECT:g}; list sizes instead, such as "
            f"{resolution}x{resolution},{resolution + unit}x{resolution}"
        )
    return sizes


def _listed(buckets: str, unit: int) -> list[Size]:
    sizes: list[Size] = []
    for text in buckets.split(","):
        match = _SIZE.fullmatch(text.strip().lower())
        if match is None:
            raise UserError(
                f"data.buckets has {text.strip()!r}; it must be {AUTO} or sizes as WIDTHxHEIGHT, such as 64x64,80x48"
            )
        width, height = int(match[1]), int(match[2])
        if width % unit or height % unit or not width or not height:
            raise UserError(f"data.buckets has {width}x{height}; sides must be multiples of {unit}")
        if (height, width) in sizes:
            raise UserError(f"data.buckets has {width}x{height} twice")
        sizes.append((height, width))
    if len(sizes) > limits.SIZES:
        raise UserError(f"data.buckets has {len(sizes)} sizes; at most {limits.SIZES} are possible")
    return sizes


def show_size(size: Size) -> str:
    """Return a size as users write it, WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


@dataclass(frozen=True)
class Assignment:
    """The bucket of each image of a data set."""

    sizes: tuple[Size, ...]
    bucket: np.ndarray  # int16 [N]: index in `sizes`, TOO_SMALL or UNREADABLE
    upsampled: int  # images that are upsampled, by at most `max_enlargement`

    TOO_SMALL = -1
    UNREADABLE = -2

    def count(self, bucket: int) -> int:
        return int(np.count_nonzero(self.bucket == bucket))


def assign(sizes: Sequence[Size], image_sizes: np.ndarray, max_enlargement: float = 1.0) -> Assignment:
    """Assign images to buckets. image_sizes: int [N, 2], height and width; 0 where the header could not be read.

    Compares ratios of exact integers, so the result is the same on every machine. Of two buckets with equally near
    aspect ratios, the first one in `sizes` is taken.
    """
    heights, widths = image_sizes.astype(np.int64).T
    best = np.full(len(image_sizes), np.inf)
    bucket = np.full(len(image_sizes), Assignment.TOO_SMALL, np.int16)
    upsampled = np.zeros(len(image_sizes), bool)
    for number, (height, width) in enumerate(sizes):
        fills = (heights * max_enlargement >= height) & (widths * max_enlargement >= width)
        across, along = widths * height, heights * width  # equal for equal aspect ratios
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.maximum(across, along) / np.minimum(across, along)
        better = fills & (ratio < best)
        bucket[better], best[better] = number, ratio[better]
        upsampled[better] = ((heights < height) | (widths < width))[better]
    bucket[(heights < 1) | (widths < 1)] = Assignment.UNREADABLE
    return Assignment(tuple(sizes), bucket, int(upsampled.sum()))
