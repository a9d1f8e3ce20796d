"""Random numbers that belong to a picture, not to its batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen.devices import sent


class Variation(NamedTuple):
    """In place of a seed: noise near that of `seed`, cos(a) seed's + sin(a) other's with a = amount pi / 2.

    Standard normal like both. amount, in [0, 1]: 0 is the noise of `seed`, 1 that of `other`.
    """

    seed: int
    other: int
    amount: float


class PictureNoise:
    """Standard normal noise; each call gives the next [B, *shape] of it.

    Every picture has its own generator, on the CPU: its noise is a function of its seed (and of how often this was
    called before), whatever its neighbours, the batch size and the device are. Nobody waits for a GPU to take it.

    seeds: one a picture, each >= 0, or a Variation of two. shape: of one picture, without the batch.
    stream: noise of the same seed for another purpose, such as another stage of a cascade; independent of it.
    """

    def __init__(
        self,
        seeds: Sequence[int | Variation],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        stream: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        self.shape, self.device, self.dtype = tuple(shape), torch.device(device), dtype
        # Of each picture the generators, with the weights in which they are mixed.
        self.generators = [[(weight, _generator(seed, stream)) for weight, seed in _parts(seed)] for seed in seeds]

    def __call__(self) -> Tensor:
        return sent(torch.stack([self._picture(parts) for parts in self.generators]), self.device)

    def _picture(self, parts: list[tuple[float, torch.Generator]]) -> Tensor:
        weight, generator = parts[0]
        noise = weight * torch.randn(self.shape, generator=generator, dtype=self.dtype)
        for weight, generator in parts[1:]:
            noise += weight * torch.randn(self.shape, generator=generator, dtype=self.dtype)
        return noise


def _parts(seed: int | Variation) -> list[tuple[float, int]]:
    if not isinstance(seed, Variation):
        return [(1.0, seed)]
    angle = seed.amount * math.pi / 2
    return [(math.cos(angle), seed.seed), (math.sin(angle), seed.other)]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, stream))


def _mix(seed: int, stream: int) -> int:
    # Hashed, since seed + stream would make stage 2 of seed 0 a copy of stage 1 of seed 1.
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])
