"""Large pictures piece by piece, so that memory is bounded by the piece.

Only the network works on tiles. Noise, conditioning and the sampler's x are those of the whole picture, and in every
step the tiles' answers are blended before the sampler goes on. So neighbours agree at each noise level, and there are
no seams; where the network sees no further than a quarter of the overlap, the result is that of the whole picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Squares of `side` pixels, of which neighbours share `overlap`. Both divide by the network's stride: a tile's grid
    is that of the whole picture."""

    side: int
    overlap: int


@dataclass(frozen=True)
class Tiled:
    """`network(x_BCHW, noise_B, **cond)` on overlapping tiles.

    Conditioning of the size of x is cut likewise; other conditioning is passed on.
    """

    network: Callable[..., Tensor]
    tile: Tile

    def __call__(self, x_BCHW: Tensor, noise_B: Tensor, **cond: Tensor) -> Tensor:
        (height, width), side, overlap = x_BCHW.shape[-2:], self.tile.side, self.tile.overlap
        if height <= side and width <= side:
            return self.network(x_BCHW, noise_B, **cond)
        total: Tensor | None = None
        weight_HW = x_BCHW.new_zeros(height, width)
        for top, bottom in spans(height, side, overlap):
            for left, right in spans(width, side, overlap):
                window = (..., slice(top, bottom), slice(left, right))
                cut = {
                    key: value[window] if value.shape[-2:] == (height, width) and value.ndim == 4 else value
                    for key, value in cond.items()
                }
                answer = self.network(x_BCHW[window], noise_B, **cut).to(x_BCHW.dtype)
                ramp_HW = torch.outer(
                    _ramp(bottom - top, top > 0, bottom < height, overlap),
                    _ramp(right - left, left > 0, right < width, overlap),
                ).to(x_BCHW)
                if total is None:
                    total = x_BCHW.new_zeros(*answer.shape[:2], height, width)
                total[window] += ramp_HW * answer
                weight_HW[window] += ramp_HW
        assert total is not None
        return total / weight_HW


def spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Where tiles begin and end along one axis. The last is moved back to end with the picture."""
    if length <= side:
        return [(0, length)]
    starts = list(range(0, length - side, side - overlap))
    return [(start, start + side) for start in [*starts, length - side]]


def _ramp(length: int, before: bool, after: bool, overlap: int) -> Tensor:
    """Weights along one axis: 1, but where tiles meet, in a quarter of the overlap 0, in half of it rising to 1.

    Near its border a tile's answer suffers from what it does not see beyond; there the neighbour's is taken.
    """
    rising = ((torch.arange(overlap) + 0.5) / overlap * 2 - 0.5).clamp(0, 1)
    weight = torch.ones(length)
    if before:
        weight[:overlap] = rising
    if after:
        weight[-overlap:] *= rising.flip(0)
    return weight
