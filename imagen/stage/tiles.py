"""Evaluate the U-Net on tiles of large images, to bound memory by the size of a tile.

Only the U-Net runs on tiles. Noise, conditioning and the sampler's x cover the whole image, and every step blends the
outputs of the tiles before the sampler continues. So adjacent tiles agree at each noise level, and there are no seams.
If the U-Net's receptive field is at most a quarter of the overlap, the result equals that of the whole image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Define square tiles of `side` pixels that overlap by `overlap` pixels.

    Both are multiples of the U-Net's total stride, so that the downsampling grids of the tiles and the image coincide.
    """

    side: int
    overlap: int


@dataclass(frozen=True)
class TiledUNet:
    """Evaluate `network(x_BCHW, noise_B, **conditions)` on overlapping tiles.

    Conditions of the size of x are tiled, too; others are passed unchanged.
    """

    network: Callable[..., Tensor]
    tile: Tile

    def __call__(self, x_BCHW: Tensor, noise_B: Tensor, **conditions: Tensor) -> Tensor:
        (height, width), side, overlap = x_BCHW.shape[-2:], self.tile.side, self.tile.overlap
        if height <= side and width <= side:
            return self.network(x_BCHW, noise_B, **conditions)
        total: Tensor | None = None
        weight_HW = x_BCHW.new_zeros(height, width)
        for top, bottom in spans(height, side, overlap):
            for left, right in spans(width, side, overlap):
                window = (..., slice(top, bottom), slice(left, right))
                cut = {
                    key: value[window] if value.shape[-2:] == (height, width) and value.ndim == 4 else value
                    for key, value in conditions.items()
                }
                output = self.network(x_BCHW[window], noise_B, **cut).to(x_BCHW.dtype)
                ramp_HW = torch.outer(
                    _ramp(bottom - top, top > 0, bottom < height, overlap),
                    _ramp(right - left, left > 0, right < width, overlap),
                ).to(x_BCHW)
                if total is None:
                    total = x_BCHW.new_zeros(*output.shape[:2], height, width)
                total[window] += ramp_HW * output
                weight_HW[window] += ramp_HW
        assert total is not None
        return total / weight_HW


def spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Return the start and end of each tile along one axis. The last tile is shifted back to end with the image."""
    if length <= side:
        return [(0, length)]
    starts = list(range(0, length - side, side - overlap))
    return [(start, start + side) for start in [*starts, length - side]]


def _ramp(length: int, before: bool, after: bool, overlap: int) -> Tensor:
    """Return the weights of a tile along one axis.

    The weight is 1 except in overlaps: from the border inwards it is 0 in a quarter of the overlap, then rises to 1
    over half of it. Near its border a tile's output lacks context, so the adjacent tile's output is used.
    """
    rising = ((torch.arange(overlap) + 0.5) / overlap * 2 - 0.5).clamp(0, 1)
    weight = torch.ones(length)
    if before:
        weight[:overlap] = rising
    if after:
        weight[-overlap:] *= rising.flip(0)
    return weight
