"""Fuse group norm, modulation and activation of feature maps into one operation.

    y = act((x^ w + b) (1 + scale) + shift),  x^ = (x - mean) / sqrt(variance + eps) over a group's channels and pixels

torch needs four operations, and its norm requires NCHW and, under autocast, float32. This one takes channels-last
tensors in any floating-point dtype, computes statistics in float32 or wider, and saves x, mean and
1 / standard deviation for the backward pass.
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
    """Return y [B, C, H, W], channels-last, in the dtype of x.

    weight, bias: [C]. scale, shift: [B, C], both or neither. activation: "none", "silu" or "gelu" (exact, by erf).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    return norm_forward(x, weight, bias, scale, shift, groups, eps, activation)[0]


@torch.library.custom_op("imagen::group_norm", mutates_args=())
def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
) -> Statistics:
    """Return (y, mean [B, G], rstd [B, G]). x: channels-last."""
    if use_triton(x):
        from imagen.kernels import triton_norm

        return triton_norm.group_norm(x, weight, bias, *_with_row_stride(scale, shift), groups, eps, activation)
    grouped = x.to(_statistics_dtype(x)).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0)
    rstd = (variance + eps).rsqrt()
    _, z = _before_activation(x, weight, bias, scale, shift, mean, rstd)
    y = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}[activation](z)
    return torch.empty_like(x).copy_(y), mean, rstd


@torch.library.custom_op("imagen::group_norm_backward", mutates_args=())
def norm_backward(
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
    """Return (dx, gradients of weight and bias [2, C], of scale and shift [2, B, C]), in the dtypes of the inputs."""
    groups = mean.shape[1]
    if use_triton(x):
        from imagen.kernels import triton_norm

        dy = dy.contiguous(memory_format=torch.channels_last)
        rows = _with_row_stride(scale, shift)
        return triton_norm.group_norm_backward(dy, x, weight, bias, *rows, mean, rstd, groups, activation)
    normal, z = _before_activation(x, weight, bias, scale, shift, mean, rstd)
    dz = dy.to(z.dtype) * _slope(z, activation)
    gain = weight.to(z.dtype)
    dz_BC, dz_normal_BC = dz.sum((2, 3)), (dz * normal).sum((2, 3))
    scale1_BC = torch.ones_like(dz_BC) if scale is None else 1 + scale.to(z.dtype)  # 1 + scale
    modulation = torch.stack([gain * dz_normal_BC + bias.to(z.dtype) * dz_BC, dz_BC])
    affine = torch.stack([(scale1_BC * dz_normal_BC).sum(0), (scale1_BC * dz_BC).sum(0)])
    d_normal = (dz * (scale1_BC * gain)[:, :, None, None]).unflatten(1, (groups, -1))
    normal = normal.unflatten(1, (groups, -1))
    mean_d = d_normal.mean((2, 3, 4), keepdim=True)
    mean_d_normal = (d_normal * normal).mean((2, 3, 4), keepdim=True)
    dx = (rstd[:, :, None, None, None] * (d_normal - mean_d - normal * mean_d_normal)).flatten(1, 2)
    return torch.empty_like(x).copy_(dx), affine.to(weight.dtype), modulation.to(_modulation_dtype(scale, x))


@norm_forward.register_fake
def _(x, weight, bias, scale, shift, groups, eps, activation):  # type: ignore[no-untyped-def]
    statistics = x.new_empty(len(x), groups, dtype=_statistics_dtype(x))
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


@norm_backward.register_fake
def _(dy, x, weight, bias, scale, shift, mean, rstd, activation):  # type: ignore[no-untyped-def]
    B, C = x.shape[:2]
    affine = x.new_empty(2, C, dtype=weight.dtype)
    return torch.empty_like(x), affine, x.new_empty(2, B, C, dtype=_modulation_dtype(scale, x))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, bias, scale, shift, _, _, ctx.activation = inputs
    ctx.set_materialize_grads(False)  # statistics have no gradients, so zeros need not be allocated for them
    ctx.save_for_backward(x, weight, bias, scale, shift, *output[1:])


def _gradients(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return (None,) * 8
    x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
    dx, affine, modulation = norm_backward(dy, x, weight, bias, scale, shift, mean, rstd, ctx.activation)
    d_weight, d_bias = affine.unbind()
    d_scale, d_shift = (None, None) if scale is None else modulation.unbind()
    return dx, d_weight, d_bias, d_scale, d_shift, None, None, None


norm_forward.register_autograd(_gradients, setup_context=_save)


def _before_activation(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (normalised x, input of the activation), in the dtype of the statistics."""
    grouped = x.to(mean.dtype).unflatten(1, (mean.shape[1], -1))
    normal = ((grouped - mean[:, :, None, None, None]) * rstd[:, :, None, None, None]).flatten(1, 2)
    z = normal * weight.to(mean.dtype)[:, None, None] + bias.to(mean.dtype)[:, None, None]
    if scale is not None and shift is not None:
        z = z * (1 + scale.to(mean.dtype)[:, :, None, None]) + shift.to(mean.dtype)[:, :, None, None]
    return normal, z


def _slope(z: Tensor, activation: str) -> Tensor:
    """Return the derivative of the activation."""
    if activation == "silu":
        s = z.sigmoid()
        return s * (1 + z * (1 - s))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(z * 2**-0.5)) + z * (2 * torch.pi) ** -0.5 * torch.exp(-0.5 * z * z)
    return torch.ones_like(z)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _modulation_dtype(scale: Tensor | None, x: Tensor) -> torch.dtype:
    return x.dtype if scale is None else scale.dtype


def use_triton(x: Tensor) -> bool:
    return x.is_cuda


def _with_row_stride(scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return both with contiguous rows of equal stride, as the kernels need them.

    They are usually the two halves of one tensor, which need no copy.
    """
    if scale is None or shift is None:
        return None, None
    if scale.stride(1) != 1 or scale.stride() != shift.stride():
        return scale.contiguous(), shift.contiguous()
    return scale, shift
