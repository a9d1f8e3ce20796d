"""Compute `imagen.kernels.norm` on GPUs, in Triton. Images are channels-last, read as [B, N, C] with N pixels.

A tile is `PIXELS` x `CHANNELS` values of one image. Statistics are float32 and computed in two passes: per tile, then
over the tiles of a group by Chan's formula, which avoids cancellation where the mean is far from zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS, CHANNELS = 64, 64  # of a tile
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2}


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        z = z * tl.sigmoid(z)
    elif ACTIVATION == 2:
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def _slope(z, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation."""
    slope = tl.full(z.shape, 1.0, tl.float32)
    if ACTIVATION == 1:
        s = tl.sigmoid(z)
        slope = s * (1 + z * (1 - s))
    elif ACTIVATION == 2:
        slope = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    return slope


@triton.jit
def _tile_statistics(x, sums, N, C, tiles, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Store the mean and the sum of squared deviations of each channel of a tile: sums [2, B, tiles, C]."""
    b, tile = tl.program_id(0), tl.program_id(1)
    n = tile * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (n < N)[:, None] & (c < C)[None, :]
    at = b.to(tl.int64) * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(N - tile * PIXELS, PIXELS)
    mean = tl.sum(value, axis=0) / count
    distance = tl.where(inside, value - mean[None, :], 0.0)
    to = (b * tiles + tile).to(tl.int64) * C + c
    every = tl.num_programs(0).to(tl.int64) * tiles * C
    tl.store(sums + to, mean, mask=c < C)
    tl.store(sums + every + to, tl.sum(distance * distance, axis=0), mask=c < C)


@triton.jit
def _group_statistics(
    sums, mean, rstd, N, C, G, tiles, eps, PIXELS: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr
):
    """Reduce the statistics of a group's tiles to mean and 1 / standard deviation: mean and rstd [B, G]."""
    b, g = tl.program_id(0), tl.program_id(1)
    width = C // G
    c = tl.arange(0, WIDTH)
    every = tl.num_programs(0).to(tl.int64) * tiles * C
    total = tl.zeros((TILES, WIDTH), tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (c < width)[None, :]
        at = (b * tiles + tile).to(tl.int64)[:, None] * C + (g * width + c)[None, :]
        count = tl.minimum(N - tile * PIXELS, PIXELS).to(tl.float32)[:, None]
        total += tl.where(inside, count * tl.load(sums + at, mask=inside, other=0.0), 0.0)
    numbers = (N * width).to(tl.float32)
    middle = tl.sum(tl.sum(total, axis=1), axis=0) / numbers
    total = tl.zeros((TILES, WIDTH), tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (c < width)[None, :]
        at = (b * tiles + tile).to(tl.int64)[:, None] * C + (g * width + c)[None, :]
        count = tl.minimum(N - tile * PIXELS, PIXELS).to(tl.float32)[:, None]
        off = tl.load(sums + at, mask=inside, other=0.0) - middle
        squares = tl.load(sums + every + at, mask=inside, other=0.0) + count * off * off
        total += tl.where(inside, squares, 0.0)
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / numbers
    tl.store(mean + b * G + g, middle)
    tl.store(rstd + b * G + g, 1 / tl.sqrt(variance + eps))


@triton.jit
def _normal(
    x, mean, rstd, weight, bias, scale, shift, stride, b, n, c, N, C, G, MODULATED: tl.constexpr
):  # fmt: skip
    """Return (offsets, mask, normalised x, gain, z) of a tile; z is the input of the activation."""
    inside = (n < N)[:, None] & (c < C)[None, :]
    at = b.to(tl.int64) * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
    group = b * G + c // (C // G)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    middle = tl.load(mean + group, mask=c < C, other=0.0)
    inverse = tl.load(rstd + group, mask=c < C, other=0.0)
    gain = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    offset = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    if MODULATED:
        more = 1 + tl.load(scale + b * stride + c, mask=c < C, other=0.0).to(tl.float32)
        gain = gain * more
        offset = offset * more + tl.load(shift + b * stride + c, mask=c < C, other=0.0).to(tl.float32)
    normal = (value - middle[None, :]) * inverse[None, :]
    return at, inside, normal, gain, normal * gain[None, :] + offset[None, :]


@triton.jit
def _forward(
    x, y, mean, rstd, weight, bias, scale, shift, stride, N, C, G,
    MODULATED: tl.constexpr, ACTIVATION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    b = tl.program_id(0)
    at, inside, _, _, z = _normal(x, mean, rstd, weight, bias, scale, shift, stride, b, n, c, N, C, G, MODULATED)
    tl.store(y + at, _activate(z, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _tile_gradients(
    dy, x, sums, mean, rstd, weight, bias, scale, shift, stride, N, C, G, tiles,
    MODULATED: tl.constexpr, ACTIVATION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Store the sums of dz, and of dz times the normalised x, over a tile's pixels: sums [2, B, tiles, C]."""
    b, tile = tl.program_id(0), tl.program_id(1)
    n = tile * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    at, inside, normal, _, z = _normal(x, mean, rstd, weight, bias, scale, shift, stride, b, n, c, N, C, G, MODULATED)
    dz = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * _slope(z, ACTIVATION)
    to = (b * tiles + tile).to(tl.int64) * C + c
    every = tl.num_programs(0).to(tl.int64) * tiles * C
    tl.store(sums + to, tl.sum(dz, axis=0), mask=c < C)
    tl.store(sums + every + to, tl.sum(dz * normal, axis=0), mask=c < C)


@triton.jit
def _group_gradients(
    sums, means, affine, modulation, weight, bias, scale, stride, N, C, G, tiles,
    MODULATED: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Reduce the sums of a group's tiles.

    means [2, B, G]: of dx_normal, and of dx_normal times the normalised x. affine [2, B, C]: gradients of weight and
    bias, per image. modulation [2, B, C]: gradients of scale and shift.
    """
    b, g = tl.program_id(0), tl.program_id(1)
    width = C // G
    lane = tl.arange(0, WIDTH)
    c = g * width + lane
    here = lane < width
    every = tl.num_programs(0).to(tl.int64) * tiles * C
    plain = tl.zeros((TILES, WIDTH), tl.float32)
    timed = tl.zeros((TILES, WIDTH), tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & here[None, :]
        at = (b * tiles + tile).to(tl.int64)[:, None] * C + c[None, :]
        plain += tl.load(sums + at, mask=inside, other=0.0)
        timed += tl.load(sums + every + at, mask=inside, other=0.0)
    dz, dz_normal = tl.sum(plain, axis=0), tl.sum(timed, axis=0)
    gain = tl.load(weight + c, mask=here, other=0.0).to(tl.float32)
    batch = tl.num_programs(0) * C
    if MODULATED:
        more = 1 + tl.load(scale + b * stride + c, mask=here, other=0.0).to(tl.float32)
        offset = tl.load(bias + c, mask=here, other=0.0).to(tl.float32)
        kind = modulation.dtype.element_ty
        tl.store(modulation + b * C + c, (gain * dz_normal + offset * dz).to(kind), mask=here)
        tl.store(modulation + batch + b * C + c, dz.to(kind), mask=here)
        dz, dz_normal = dz * more, dz_normal * more
    tl.store(affine + b * C + c, dz_normal, mask=here)
    tl.store(affine + batch + b * C + c, dz, mask=here)
    numbers = (N * width).to(tl.float32)
    tl.store(means + b * G + g, tl.sum(gain * dz, axis=0) / numbers)
    tl.store(means + tl.num_programs(0) * G + b * G + g, tl.sum(gain * dz_normal, axis=0) / numbers)


@triton.jit
def _backward(
    dy, x, dx, means, mean, rstd, weight, bias, scale, shift, stride, N, C, G,
    MODULATED: tl.constexpr, ACTIVATION: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    n = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    at, inside, normal, gain, z = _normal(
        x, mean, rstd, weight, bias, scale, shift, stride, b, n, c, N, C, G, MODULATED
    )
    d_normal = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * _slope(z, ACTIVATION) * gain[None, :]
    group = b * G + c // (C // G)
    plain = tl.load(means + group, mask=c < C, other=0.0)
    timed = tl.load(means + tl.num_programs(0) * G + group, mask=c < C, other=0.0)
    inverse = tl.load(rstd + group, mask=c < C, other=0.0)
    value = inverse[None, :] * (d_normal - plain[None, :] - normal * timed[None, :])
    tl.store(dx + at, value.to(dx.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, mean [B, G], rstd [B, G]), see `imagen.kernels.norm`.

    x: channels-last. scale, shift: [B, C] with contiguous rows of equal stride.
    """
    B, N, C, tiles = _sizes(x)
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty(B, groups, dtype=torch.float32) for _ in range(2))
    sums = x.new_empty(2, B, tiles, C, dtype=torch.float32)
    grid, shape = (B, tiles, triton.cdiv(C, CHANNELS)), {"PIXELS": PIXELS, "CHANNELS": CHANNELS}
    _tile_statistics[grid](x, sums, N, C, tiles, **shape)
    _group_statistics[(B, groups)](
        sums, mean, rstd, N, C, groups, tiles, eps, PIXELS=PIXELS, **_reduction(tiles, C // groups)
    )
    modulation = _modulation(x, scale, shift)
    _forward[grid](
        *(x, y, mean, rstd, weight, bias, *modulation, N, C, groups),
        MODULATED=scale is not None,
        ACTIVATION=ACTIVATIONS[activation],
        **shape,
    )
    return y, mean, rstd


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, gradients of weight and bias [2, C], of scale and shift [2, B, C])."""
    B, N, C, tiles = _sizes(x)
    dx = torch.empty_like(x)
    sums = x.new_empty(2, B, tiles, C, dtype=torch.float32)
    means = x.new_empty(2, B, groups, dtype=torch.float32)
    affine = x.new_empty(2, B, C, dtype=torch.float32)
    modulated = x.new_empty(2, B, C, dtype=x.dtype if scale is None else scale.dtype)
    grid = (B, tiles, triton.cdiv(C, CHANNELS))
    modulation = _modulation(x, scale, shift)
    variant = {"MODULATED": scale is not None, "ACTIVATION": ACTIVATIONS[activation]}
    shape = {"PIXELS": PIXELS, "CHANNELS": CHANNELS}
    norm = (mean, rstd, weight, bias, *modulation, N, C, groups)
    _tile_gradients[grid](dy, x, sums, *norm, tiles, **variant, **shape)
    _group_gradients[(B, groups)](
        *(sums, means, affine, modulated, weight, bias, modulation[0], modulation[2], N, C, groups, tiles),
        MODULATED=variant["MODULATED"],
        **_reduction(tiles, C // groups),
    )
    _backward[grid](dy, x, dx, means, *norm, **variant, **shape)
    return dx, affine.sum(1).to(weight.dtype), modulated


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return (B, pixels, C, tiles along the pixels)."""
    B, C, H, W = x.shape
    return B, H * W, C, triton.cdiv(H * W, PIXELS)


def _reduction(tiles: int, width: int) -> dict[str, int]:
    """Return the block size for the reduction over a group's tiles: powers of two, about 4096 values."""
    wide = triton.next_power_of_2(width)
    return {"WIDTH": wide, "TILES": max(1, min(triton.next_power_of_2(tiles), 4096 // wide))}


def _modulation(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor, int]:
    if scale is None or shift is None:
        return x, x, 0  # never read
    return scale, shift, scale.stride(0)
