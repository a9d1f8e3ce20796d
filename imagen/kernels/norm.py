"""Group norm, scale and shift, and activation of pictures, as one operation of bf16 (or any) numbers.

    y = act((x^ w + b) (1 + scale) + shift),  x^ = (x - mean) / sqrt(variance + eps) over a group's channels and pixels

torch's takes four operations for that, of which the norm wants NCHW and, under autocast, float32. Here pictures lie
NHWC, statistics are float32, and what is kept for the backward pass is x, mean and 1 / standard deviation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Statistics = tuple[Tensor, Tensor, Tensor]


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """y [B, C, H, W], channels-last, in x's dtype.

    weight, bias: [C]; scale, shift: [B, C], both or neither. activation: "none", "silu" or "gelu" (the exact one).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    return _norm(x, weight, bias, scale, shift, groups, eps, activation)[0]


@torch.library.custom_op("imagen::group_norm", mutates_args=())
def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
) -> Statistics:
    """(y, mean [B, G], rstd [B, G])."""
    if _by_triton(x):
        from imagen.kernels import triton

        return triton.group_norm(x, weight, bias, *_rows(scale, shift), groups, eps, activation)
    wide = _wide(x)
    grouped = x.to(wide).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    _, z = _before_activation(x, weight, bias, scale, shift, mean, rstd)
    y = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}[activation](z)
    return torch.empty_like(x).copy_(y), mean, rstd


@torch.library.custom_op("imagen::group_norm_backward", mutates_args=())
def _norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
) -> Statistics:
    """(dx, gradients of weight and bias [2, C], of scale and shift [2, B, C]), each as what it is the gradient of."""
    groups = mean.shape[1]
    if _by_triton(x):
        from imagen.kernels import triton

        dy = dy.contiguous(memory_format=torch.channels_last)
        return triton.group_norm_backward(dy, x, weight, bias, *_rows(scale, shift), mean, rstd, groups, activation)
    normal, z = _before_activation(x, weight, bias, scale, shift, mean, rstd)
    dz = dy.to(z.dtype) * _slope(z, activation)
    gain = weight.to(z.dtype)
    dz_BC, dz_normal_BC = dz.sum((2, 3)), (dz * normal).sum((2, 3))
    more_BC = torch.ones_like(dz_BC) if scale is None else 1 + scale.to(z.dtype)
    modulation = torch.stack([gain * dz_normal_BC + bias.to(z.dtype) * dz_BC, dz_BC])
    affine = torch.stack([(more_BC * dz_normal_BC).sum(0), (more_BC * dz_BC).sum(0)])
    d_normal = (dz * (more_BC * gain)[:, :, None, None]).unflatten(1, (groups, -1))
    normal = normal.unflatten(1, (groups, -1))
    plain = d_normal.mean((2, 3, 4), keepdim=True)
    timed = (d_normal * normal).mean((2, 3, 4), keepdim=True)
    dx = (rstd[:, :, None, None, None] * (d_normal - plain - normal * timed)).flatten(1, 2)
    return torch.empty_like(x).copy_(dx), affine.to(weight.dtype), modulation.to(_dtype(scale, x))


@_norm.register_fake
def _(x, weight, bias, scale, shift, groups, eps, activation):  # type: ignore[no-untyped-def]
    statistics = x.new_empty(len(x), groups, dtype=_wide(x))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@_norm_backward.register_fake
def _(dy, x, weight, bias, scale, shift, mean, rstd, activation):  # type: ignore[no-untyped-def]
    B, C = x.shape[:2]
    affine, modulation = x.new_empty(2, C, dtype=weight.dtype), x.new_empty(2, B, C, dtype=_dtype(scale, x))
    return torch.empty_like(x), affine, modulation


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, scale, shift, _, _, ctx.activation = inputs
    ctx.set_materialize_grads(False)  # of the statistics there are none, which zeros need not say
    ctx.save_for_backward(x, weight, bias, scale, shift, *output[1:])


def _gradients(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * 8
    x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    dx, affine, modulation = _norm_backward(dy, x, weight, bias, scale, shift, mean, rstd, ctx.activation)
    d_weight, d_bias = affine.unbind()
    d_scale, d_shift = (None, None) if scale is None else modulation.unbind()
    return dx, d_weight, d_bias, d_scale, d_shift, None, None, None


_norm.register_autograd(_gradients, setup_context=_keep)


def _before_activation(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(normalised x, what goes into the activation), in the statistics' dtype."""
    grouped = x.to(mean.dtype).unflatten(1, (mean.shape[1], -1))
    normal = ((grouped - mean[:, :, None, None, None]) * rstd[:, :, None, None, None]).flatten(1, 2)
    z = normal * weight.to(mean.dtype)[:, None, None] + bias.to(mean.dtype)[:, None, None]
    if scale is not None and shift is not None:
        z = z * (1 + scale.to(mean.dtype)[:, :, None, None]) + shift.to(mean.dtype)[:, :, None, None]
    return normal, z


def _slope(z: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        s = z.sigmoid()
        return s * (1 + z * (1 - s))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(z * 2**-0.5)) + z * (2 * torch.pi) ** -0.5 * torch.exp(-0.5 * z * z)
    return torch.ones_like(z)


def _wide(x: Tensor) -> torch.dtype:
    """Of the statistics."""
    return torch.promote_types(x.dtype, torch.float32)


def _dtype(scale: Tensor | None, x: Tensor) -> torch.dtype:
    return x.dtype if scale is None else scale.dtype


def _by_triton(x: Tensor) -> bool:
    return x.is_cuda


def _rows(scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both with contiguous rows of one stride: halves of one tensor, as a rule, that need no copy."""
    if scale is None or shift is None:
        return None, None
    if scale.stride(1) != 1 or scale.stride() != shift.stride():
        return scale.contiguous(), shift.contiguous()
    return scale, shift
