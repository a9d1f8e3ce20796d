"""Draw training randomness as a pure function of (seed, global position).

The noise, noise level and text dropout of a sample depend only on the run's seed and the sample's position in the
stream of training data. A resumed run, or one with another number of ranks or another micro-batch size, therefore
applies the same noise to the same images.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from imagen.kernels import philox

# Each purpose is an independent stream.
EPS, LOW_RES_LEVEL, LOW_RES_EPS, TEXT_DROPOUT, TIME, INIT, DROPOUT_LAYERS, _PICTURES = range(8)


def seed_for(seed: int, position: int, purpose: int) -> int:
    """Return a hashed 63-bit seed for one purpose at one position.

    NOTE torch's CPU generator uses only the low 32 bits, so among billions of positions some pairs share their random
    numbers. This is harmless, because their images differ.
    """
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, position: int, purpose: int) -> torch.Generator:
    """Return torch's CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(seed_for(seed, position, purpose))


def normal(
    shape: Sequence[int], seed: int, positions: range, purpose: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return standard normal numbers [B, *shape], float32, computed on `device`; images are channels-last.

    Counter-based (`imagen.kernels.philox`), so equal on all devices up to rounding.
    """
    return philox.normal((len(positions), *shape), seed_for(seed, 0, _PICTURES), positions.start, purpose, device)


def uniform(seed: int, positions: Sequence[int], purpose: int) -> Tensor:
    """Return uniform numbers in [0, 1), float64 [B] on the CPU, from one generator per sample."""
    draws = [
        torch.rand((), generator=generator(seed, position, purpose), dtype=torch.float64) for position in positions
    ]
    return torch.stack(draws)
