"""Compute standard normal numbers as a pure function of a key and a counter: Philox4x32-10 (Salmon et al., SC 2011).

A stateful generator, such as torch's on a CPU, must be drawn from sequentially. Here number e of sample p is computed
from (key, p, purpose, e) alone, on any device, identical up to the rounding of log, cos and sin. One counter gives four
numbers: two pairs by the Box-Muller transform.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagen import kernels
from imagen.devices import send

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key in each round
_WORD, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
_CHUNK = 2**15  # counters at a time, to fit in a core's cache

Words = np.ndarray  # uint64, each holding a 32-bit word


def normal(shape: Sequence[int], key: int, first: int, purpose: int, device: torch.device | str = "cpu") -> Tensor:
    """Return standard normal numbers, float32 [B, ...] = `shape`, of samples `first`, `first` + 1, ...

    Four-dimensional results are channels-last. key: 64 bits. purpose: 32 bits; different purposes are independent
    streams. first: 64 bits.
    """
    device = torch.device(device)
    samples_B = torch.arange(first, first + shape[0], device=fill_device(device))
    return normal_for(samples_B, shape[1:], key, purpose, device)


def normal_for(samples_B: Tensor, shape: Sequence[int], key: int, purpose: int, device: torch.device) -> Tensor:
    """Return the numbers of `normal` for any samples, [B, *shape]. samples_B: int64, on `fill_device(device)`."""
    layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
    out = torch.empty(len(samples_B), *shape, device=samples_B.device, memory_format=layout)
    torch.ops.imagen.fill_normal(out, samples_B, key - 2**64 if key >= 2**63 else key, purpose)
    return send(out, device)


def fill_device(device: torch.device) -> torch.device:
    """Return the device that computes the numbers for `device`: the same one if Triton runs on it, else the CPU."""
    return device if kernels.uses_triton(device) else torch.device("cpu")


def words(counter: Sequence[Words], key: int, spare: Sequence[Words] | None = None) -> list[Words]:
    """Return four random words for each counter of four words: block, sample (low, high), purpose.

    Overwrites the counter and `spare`, two arrays of the same shape.
    """
    (a, b, c, d), (first, second) = counter, spare or [np.empty_like(word) for word in counter[:2]]
    keys = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(ROUNDS):
        np.multiply(a, MULTIPLIERS[0], out=first)
        np.multiply(c, MULTIPLIERS[1], out=second)
        for high, low, product, word in ((a, b, second, keys[0]), (c, d, first, keys[1])):
            np.right_shift(product, _BITS, out=high)
            high ^= low
            high ^= np.uint64(word)
            high &= _WORD  # `low` has more than 32 bits from the second round on
        b, second, d, first = second, b, first, d
        keys = [(word + step) & 0xFFFFFFFF for word, step in zip(keys, WEYL, strict=True)]
    b &= _WORD
    d &= _WORD
    return [a, b, c, d]


def _fill_by_numpy(out: Tensor, samples_B: Tensor, key: int, purpose: int) -> None:
    """Fill `out` on the CPU.

    NumPy computes the integers, in half of torch's time, and torch the logarithms, cosines and sines.
    """
    numbers = math.prod(out.shape[1:])
    blocks = -(-numbers // 4)
    rows, columns = max(1, min(len(out), _CHUNK // max(1, blocks))), min(_CHUNK, blocks)
    block = np.arange(blocks, dtype=np.uint64)
    sample = samples_B.numpy().view(np.uint64)[:, None]
    memory = np.empty((6, rows * columns), np.uint64)
    flat = torch.empty(len(out), blocks, 4)
    for row in range(0, len(out), rows):
        for column in range(0, blocks, columns):
            here, own = flat[row : row + rows, column : column + columns], sample[row : row + rows]
            *counter, first, second = (word[: here.numel() // 4].reshape(here.shape[:2]) for word in memory)
            values = (block[column : column + columns], own & _WORD, own >> _BITS, purpose)
            for word, value in zip(counter, values, strict=True):
                word[:] = value
            pairs = words(counter, key, (first, second))
            for number in (0, 2):
                radius = _unit(pairs[number]).log_().mul_(-2).sqrt_()
                angle = _unit(pairs[number + 1]).mul_(2 * math.pi)
                torch.mul(radius, angle.cos(), out=here[..., number])
                torch.mul(radius, angle.sin_(), out=here[..., number + 1])
    out.copy_(flat.flatten(1)[:, :numbers].reshape(out.shape))


def _unit(word: Words) -> Tensor:
    """Return the upper 24 of 32 bits as float32 in (0, 1]."""
    return torch.from_numpy((word >> np.uint64(8)).view(np.int64)).float().add_(0.5).mul_(2**-24)


def _fill_by_triton(out: Tensor, samples_B: Tensor, key: int, purpose: int) -> None:
    """Fill `out` on a GPU, in one kernel."""
    from imagen.kernels import triton_philox

    triton_philox.fill_normal(out, samples_B, key, purpose)


def _fill_fake(out: Tensor, samples_B: Tensor, key: int, purpose: int) -> None:
    """Do nothing: fake tensors have no values."""


# Not torch.library.custom_op: its first call on a CPU imports the compiler, which takes seconds. key: signed 64 bits.
torch.library.define("imagen::fill_normal", "(Tensor(a!) out, Tensor samples, int key, int purpose) -> ()")
torch.library.impl("imagen::fill_normal", "cpu", _fill_by_numpy)
torch.library.impl("imagen::fill_normal", "cuda", _fill_by_triton)
torch.library.register_fake("imagen::fill_normal", _fill_fake)
