"""Compute heights and widths of the stages, with one aspect ratio and multiples of the U-Nets' strides."""

import math
from collections.abc import Sequence

from imagen.cascade.options import Size
from imagen.errors import UserError
from imagen.stage.config import StageConfig


def sizes_for(run: Sequence[StageConfig], size: Size | None) -> tuple[Size, ...]:
    """Return the output size of each stage for a final `size` (None: the square of training).

    Raises UserError, with the nearest possible sizes, if the U-Nets' strides do not divide it.
    """
    reference = run[-1].resolution
    height, width = size or (reference, reference)
    _check_divides((height, width), size_multiple(run, reference), "size")
    return tuple((height * stage.resolution // reference, width * stage.resolution // reference) for stage in run)


def sizes_like(run: Sequence[StageConfig], given: Size) -> tuple[Size, ...]:
    """Return output sizes with about the aspect ratio of `given`, and shorter sides near the resolution of training."""
    reference = run[-1].resolution
    step, scale = size_multiple(run, reference), reference / min(given)
    height, width = (max(round(side * scale / step), 1) * step for side in given)
    return sizes_for(run, (height, width))


def sizes_above(run: Sequence[StageConfig], given: Size) -> tuple[Size, tuple[Size, ...], Size]:
    """Return the padded size of images of size `given`, the stages' output sizes, and the final crop."""
    reference = run[0].low_resolution or 1
    step = size_multiple(run, reference)
    height, width = (-(-side // step) * step for side in given)
    sizes = tuple((height * stage.resolution // reference, width * stage.resolution // reference) for stage in run)
    final = run[-1].resolution
    return (height, width), sizes, (given[0] * final // reference, given[1] * final // reference)


def untrained_size(run: Sequence[StageConfig], sizes: Sequence[Size]) -> str | None:
    """Return a warning if a stage outputs a size that it was not trained on; None otherwise.

    A super-resolution stage without recorded sizes works at any size: it is usually trained on crops.
    """
    for stage, (height, width) in zip(run, sizes, strict=True):
        trained = stage.sizes or ((stage.resolution, stage.resolution),)
        if (height, width) in trained or (stage.low_resolution is not None and not stage.sizes):
            continue
        shown = ", ".join(f"{h}x{w}" for h, w in trained[:12]) + (", ..." if len(trained) > 12 else "")
        return (
            f"stage {stage.resolution} was trained on images of {shown} (height x width) and outputs {height}x{width} "
            "here: objects may repeat or be cut"
        )
    return None


def size_multiple(run: Sequence[StageConfig], reference: int) -> int:
    """Return the number that must divide sides at resolution `reference`, so that all stages' strides fit."""
    units = []
    for stage in run:
        needed = stage.unet.total_stride * reference  # must divide side * resolution
        units.append(needed // math.gcd(needed, stage.resolution))
    return math.lcm(*units)


def _check_divides(size: tuple[int, int], unit: int, what: str) -> None:
    if all(side > 0 and side % unit == 0 for side in size):
        return
    nearest = []
    for side in size:
        below, above = side // unit * unit, -(-side // unit) * unit
        nearest.append(" or ".join(str(side) for side in sorted({max(below, unit), max(above, unit)})))
    raise UserError(
        f"{what} is {size[0]}x{size[1]} (height x width), but sides must be divisible by {unit}; "
        f"nearest: height {nearest[0]}, width {nearest[1]}"
    )
