"""Standard normal numbers as a pure function of a key and a counter: Philox4x32-10 (Salmon et al., SC 2011).

A generator with a state, as torch's on a CPU, has to be drawn from in order and in one place. Here number e of sample p
is computed from (key, p, purpose, e) alone, on any device, the same but for the rounding of log, cos and sin. Four
numbers come of one counter: two pairs by Box and Muller's transform.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imagen import kernels

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # by which the key grows from round to round
_WORD = 0xFFFFFFFF
_PART = 2**15  # counters at a time: what stays in a core's cache


def normal(shape: Sequence[int], key: int, first: int, purpose: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers float32 [B, ...] = `shape` of samples `first`, `first` + 1, ...; pictures channels-last.

    key: 64 bits. purpose: 32 bits, of streams that are to be independent. first: 64 bits.
    """
    device = torch.device(device)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    out = torch.empty(*shape, device=device, memory_format=layout)
    if kernels.fused(device):
        fill_normal(out, _signed(key), first, purpose)
        return out
    _by_torch(out, key, first, purpose)
    return out


@torch.library.custom_op("imagen::fill_normal", mutates_args=("out",))
def fill_normal(out: Tensor, key: int, first: int, purpose: int) -> None:
    """`normal` into a tensor on a GPU, in one kernel. key: as a signed number."""
    from imagen.kernels import triton

    triton.fill_normal(out, key, first, purpose)


@fill_normal.register_fake
def _(out: Tensor, key: int, first: int, purpose: int) -> None:
    pass


def words(block: Tensor, sample: Tensor, key: int, purpose: int) -> list[Tensor]:
    """Four 32-bit words, each int64, of the counter (block, sample, purpose); the tensors are of one shape.

    What lies above a word's 32 bits is cleared before it is multiplied, and at the end.
    """
    a, b, c, d = block.clone(), sample & _WORD, sample >> 32 & _WORD, torch.full_like(sample, purpose)
    keys = [key & _WORD, key >> 32 & _WORD]
    for _ in range(ROUNDS):
        # The products have 64 bits, all of which an int64 holds: its sign is one of them.
        first, second = a * MULTIPLIERS[0], c.mul_(MULTIPLIERS[1])
        torch.bitwise_right_shift(second, 32, out=a).bitwise_xor_(b).bitwise_xor_(keys[0]).bitwise_and_(_WORD)
        torch.bitwise_right_shift(first, 32, out=b).bitwise_xor_(d).bitwise_xor_(keys[1]).bitwise_and_(_WORD)
        b, c, d = second, b, first
        keys = [(word + step) & _WORD for word, step in zip(keys, WEYL, strict=True)]
    return [word.bitwise_and_(_WORD) for word in (a, b, c, d)]


def _by_torch(out: Tensor, key: int, first: int, purpose: int) -> None:
    numbers = math.prod(out.shape[1:])
    blocks = -(-numbers // 4)
    block = torch.arange(blocks, device=out.device)
    sample = torch.arange(first, first + len(out), device=out.device)
    flat = torch.empty(len(out), blocks, 4, device=out.device)
    rows, columns = max(1, _PART // blocks), min(_PART, blocks)
    for row in range(0, len(out), rows):
        for column in range(0, blocks, columns):
            here = flat[row : row + rows, column : column + columns]
            blocks_here, samples_here = torch.broadcast_tensors(
                block[column : column + columns], sample[row : row + rows, None]
            )
            pairs = words(blocks_here.contiguous(), samples_here.contiguous(), key, purpose)
            for number, (word, other) in enumerate((pairs[:2], pairs[2:])):
                radius = _unit(word).log_().mul_(-2).sqrt_()
                angle = _unit(other).mul_(2 * math.pi)
                torch.mul(radius, angle.cos(), out=here[..., 2 * number])
                torch.mul(radius, angle.sin_(), out=here[..., 2 * number + 1])
    out.copy_(flat.flatten(1)[:, :numbers].reshape(out.shape))


def _unit(word: Tensor) -> Tensor:
    """The upper 24 of 32 bits as float32 in (0, 1]."""
    return (word >> 8).float().add_(0.5).mul_(2**-24)


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
