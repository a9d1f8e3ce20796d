"""Randomness as a pure function of (seed, global position).

A sample's noise, noise level and text dropout depend on nothing but the run's seed and
the sample's place in the endless stream of training data. So a resumed run, another
number of ranks or another micro-batch sees exactly the same noise on the same pictures.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from imagen.kernels import philox

# Purposes keep apart the streams that are drawn for one position.
EPS, LOW_RES_LEVEL, LOW_RES_EPS, TEXT_DROPOUT, TIME, INIT, DROPOUT_LAYERS, _PICTURES = range(8)


def seed_for(seed: int, position: int, purpose: int) -> int:
    """A well-mixed 63-bit seed for one purpose at one position.

    NOTE torch's CPU generator keeps the low 32 bits alone: among billions of positions
    some pairs share their noise. It falls on different pictures, so nothing is lost.
    """
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, position: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, position, purpose))


def normal(
    shape: Sequence[int], seed: int, positions: range, purpose: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers [B, *shape], float32, drawn where they are needed; pictures lie channels-last.

    Of a generator without a state (`imagen.kernels.philox`), so the same on all devices but for rounding.
    """
    return philox.normal((len(positions), *shape), seed_for(seed, 0, _PICTURES), positions.start, purpose, device)


def uniform(seed: int, positions: Sequence[int], purpose: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [B] on the CPU, one generator a sample."""
    draws = [
        torch.rand((), generator=generator(seed, position, purpose), dtype=torch.float64) for position in positions
    ]
    return torch.stack(draws)
