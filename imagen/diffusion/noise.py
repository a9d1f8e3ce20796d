"""Random numbers that belong to a picture, not to its batch."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen.devices import sent
from imagen.kernels import philox

# philox: counter-based, drawn where it is needed. torch: generators of torch on the CPU, of pictures whose files name
# no generator; `remake` alone asks for it.
NoiseKind = Literal["philox", "torch"]
_KEY = 0x7069637475726573  # keeps pictures apart from what else is drawn by Philox


class Variation(NamedTuple):
    """In place of a seed: noise near that of `seed`, cos(a) seed's + sin(a) other's with a = amount pi / 2.

    Standard normal like both. amount, in [0, 1]: 0 is the noise of `seed`, 1 that of `other`.
    """

    seed: int
    other: int
    amount: float


class PictureNoise:
    """Standard normal noise; each call gives the next [B, *shape] of it, pictures channels-last.

    A picture's noise is a function of its seed, of `stream`, and of how often this was called before, whatever its
    neighbours, the batch size and the device are (but for rounding between devices). Nothing waits for the device.

    seeds: one per picture, each >= 0, or a Variation of two. shape: of one picture, without the batch.
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
        self.shape, self.dtype, self.drawn = tuple(shape), dtype, 0
        pairs = [seed if isinstance(seed, Variation) else Variation(seed, seed, 0.0) for seed in seeds]
        angles = [pair.amount * math.pi / 2 for pair in pairs]
        # What is mixed: the first of every pair, and the others if there is a Variation among the seeds.
        mixed = [([pair.seed for pair in pairs], [math.cos(angle) for angle in angles])]
        if any(isinstance(seed, Variation) for seed in seeds):
            mixed.append(([pair.other for pair in pairs], [math.sin(angle) for angle in angles]))
        self.device, ones = torch.device(device), [1] * len(self.shape)
        home = philox.home(self.device)
        self._samples = [sent(_samples([_mix(seed, stream) for seed in own]), home) for own, _ in mixed]
        weights = [torch.tensor(each, dtype=dtype).view(-1, *ones) for _, each in mixed] if len(mixed) > 1 else []
        self._weights = [sent(each, self.device) for each in weights]

    def __call__(self) -> Tensor:
        drawn = [philox.normal_of(samples_B, self.shape, _KEY, self.drawn, self.device) for samples_B in self._samples]
        first, *other = [noise.to(self.dtype) for noise in drawn]
        self.drawn += 1
        if not other:
            return first
        return self._weights[0] * first + self._weights[1] * other[0]  # a seed beside a Variation: times 1, plus 0


class TorchNoise:
    """The noise of `PictureNoise` before it was counter-based: a generator of torch per seed, drawn on the CPU."""

    def __init__(
        self, seeds: Sequence[int | Variation], shape: Sequence[int], device: torch.device | str, *, stream: int
    ):
        self.shape, self.device = tuple(shape), torch.device(device)
        # Of each picture the generators, with the weights in which they are mixed.
        self._generators = [
            [(weight, torch.Generator().manual_seed(_mix(each, stream))) for weight, each in _parts(seed)]
            for seed in seeds
        ]

    def __call__(self) -> Tensor:
        return sent(torch.stack([self._picture(parts) for parts in self._generators]), self.device)

    def _picture(self, parts: list[tuple[float, torch.Generator]]) -> Tensor:
        weight, generator = parts[0]
        noise = weight * torch.randn(self.shape, generator=generator)
        for weight, generator in parts[1:]:
            noise += weight * torch.randn(self.shape, generator=generator)
        return noise


NOISES: dict[NoiseKind, Callable[..., PictureNoise | TorchNoise]] = {"philox": PictureNoise, "torch": TorchNoise}


def _parts(seed: int | Variation) -> list[tuple[float, int]]:
    if not isinstance(seed, Variation):
        return [(1.0, seed)]
    angle = seed.amount * math.pi / 2
    return [(math.cos(angle), seed.seed), (math.sin(angle), seed.other)]


def _samples(words: list[int]) -> Tensor:
    """64-bit words as int64, which is how torch holds them."""
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def _mix(seed: int, stream: int) -> int:
    # Hashed, since seed + stream would make stage 2 of seed 0 a copy of stage 1 of seed 1.
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])
