"""Random numbers that belong to a picture, not to its batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class PictureNoise:
    """Standard normal noise; each call gives the next [B, *shape] of it.

    Every picture has its own generator, on the CPU: its noise is a function of its seed (and of how often this was
    called before), whatever its neighbours, the batch size and the device are.

    seeds: one a picture, each >= 0. shape: of one picture, without the batch.
    stream: noise of the same seed for another purpose, such as another stage of a cascade; independent of it.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        stream: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        self.shape, self.device, self.dtype = tuple(shape), device, dtype
        self.generators = [torch.Generator().manual_seed(_mix(seed, stream)) for seed in seeds]

    def __call__(self) -> Tensor:
        pictures = [torch.randn(self.shape, generator=g, dtype=self.dtype) for g in self.generators]
        return torch.stack(pictures).to(self.device)


def _mix(seed: int, stream: int) -> int:
    # Hashed, since seed + stream would make stage 2 of seed 0 a copy of stage 1 of seed 1.
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])
