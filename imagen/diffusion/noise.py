"""Generate sampling noise that depends on an image's seed and not on its batch."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from imagen.devices import send
from imagen.kernels import philox

# "philox": counter-based, computed on the device. "torch": torch's generators on the CPU, only to regenerate images
# whose files name no generator.
NoiseKind = Literal["philox", "torch"]
_KEY = 0x7069637475726573  # separates sampling noise from other uses of Philox


class Variation(NamedTuple):
    """Two seeds whose noise is interpolated: cos(a) noise(seed) + sin(a) noise(other) with a = amount pi / 2.

    Can be used in place of a seed; the result is standard normal. amount, in [0, 1]: 0 gives the noise of `seed`, 1
    the noise of `other`.
    """

    seed: int
    other: int
    amount: float


class PictureNoise:
    """A generator of standard normal noise. Each call returns the next [B, *shape], channels-last for images.

    The noise of an image is a function of its seed, `stream` and the number of earlier calls. It does not depend on the
    other images, the batch size or, up to rounding, the device. Never synchronises with the device.

    seeds: one per image, each >= 0, or a Variation of two. shape: of one image, without the batch.
    stream: different streams of a seed are independent; use another one for each stage of a cascade.
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
        # The terms of the sum: the first seeds of all pairs, and their second seeds if there is any Variation.
        mixed = [([pair.seed for pair in pairs], [math.cos(angle) for angle in angles])]
        if any(isinstance(seed, Variation) for seed in seeds):
            mixed.append(([pair.other for pair in pairs], [math.sin(angle) for angle in angles]))
        self.device, ones = torch.device(device), [1] * len(self.shape)
        fill_device = philox.fill_device(self.device)
        self._samples = [send(_samples([_mix(seed, stream) for seed in seeds]), fill_device) for seeds, _ in mixed]
        weights = [torch.tensor(each, dtype=dtype).view(-1, *ones) for _, each in mixed] if len(mixed) > 1 else []
        self._weights = [send(each, self.device) for each in weights]

    def __call__(self) -> Tensor:
        drawn = [philox.normal_for(samples_B, self.shape, _KEY, self.drawn, self.device) for samples_B in self._samples]
        first, *other = [noise.to(self.dtype) for noise in drawn]
        self.drawn += 1
        if not other:
            return first
        return self._weights[0] * first + self._weights[1] * other[0]  # a plain seed has weights 1 and 0


class TorchNoise:
    """A generator of noise by one torch generator per seed, on the CPU, as in versions before counter-based noise."""

    def __init__(
        self, seeds: Sequence[int | Variation], shape: Sequence[int], device: torch.device | str, *, stream: int
    ):
        self.shape, self.device = tuple(shape), torch.device(device)
        # Generators of each image, with their weights.
        self._generators = [
            [(weight, torch.Generator().manual_seed(_mix(each, stream))) for weight, each in _parts(seed)]
            for seed in seeds
        ]

    def __call__(self) -> Tensor:
        return send(torch.stack([self._picture(parts) for parts in self._generators]), self.device)

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
    """Reinterpret 64-bit words as int64, since torch supports few operations on uint64."""
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def _mix(seed: int, stream: int) -> int:
    # Hashed: seed + stream would give stage 2 of seed 0 the noise of stage 1 of seed 1.
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0])
