"""Fill tensors with the normal numbers of `imagen.kernels.philox` on a GPU, in Triton."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _unit(word):
    return ((word >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08


# Without do_not_specialize, Triton would make an argument of 1 a constant, which has no `.to`.
@triton.jit(do_not_specialize=["low", "high", "purpose"])
def _fill_normal(out, samples, low, high, purpose, numbers, blocks, C, pixels, nhwc: tl.constexpr, BLOCK: tl.constexpr):
    """Store the four numbers of each counter. Number e of an image is channel e // pixels of pixel e % pixels."""
    b = tl.program_id(0)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(samples + b)
    zero = tl.zeros((BLOCK,), tl.int32)
    c0 = (block + zero).to(tl.uint32, bitcast=True)
    c1 = ((sample & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32, bitcast=True)).to(tl.uint32)
    c2 = (((sample >> 32) & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32, bitcast=True)).to(tl.uint32)
    c3 = (purpose.to(tl.uint32) + zero.to(tl.uint32, bitcast=True)).to(tl.uint32)
    k0, k1 = low.to(tl.uint32), high.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, c3, k0, k1)
    r0, r1 = tl.sqrt(-2 * tl.log(_unit(w0))), tl.sqrt(-2 * tl.log(_unit(w2)))
    a0, a1 = _unit(w1) * 6.283185307179586, _unit(w3) * 6.283185307179586
    z0, z1, z2, z3 = r0 * tl.cos(a0), r0 * tl.sin(a0), r1 * tl.cos(a1), r1 * tl.sin(a1)
    base = out + b.to(tl.int64) * numbers
    for lane in tl.static_range(4):
        value = z0 if lane == 0 else (z1 if lane == 1 else (z2 if lane == 2 else z3))
        e = block * 4 + lane
        at = e % pixels * C + e // pixels if nhwc else e
        tl.store(base + at, value, mask=e < numbers)


def fill_normal(out: Tensor, samples_B: Tensor, key: int, purpose: int) -> None:
    """Fill `out` [B, ...], contiguous or channels-last; see `imagen.kernels.philox`."""
    numbers = out[0].numel()
    nhwc = out.ndim == 4 and not out.is_contiguous()
    C, pixels = (out.shape[1], numbers // out.shape[1]) if nhwc else (1, numbers)
    blocks = triton.cdiv(numbers, 4)
    low, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    grid = (len(out), triton.cdiv(blocks, 256))
    _fill_normal[grid](out, samples_B, low, high, purpose, numbers, blocks, C, pixels, nhwc=nhwc, BLOCK=256)
