"""Layers of the U-Net: embeddings, residual blocks, attention, resampling.

Shape legend: B batch, C channels, H W height and width in pixels, L text tokens,
D text embedding dimension, E dimension of the embedding that conditions every residual block.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen import kernels

AttentionKind = Literal["none", "self", "cross", "fused"]
Activation = Literal["silu", "gelu"]
ContextNorm = Literal["layer", "group"]

# Text input of attention: tokens [B, L, D], or cached keys and values of each attention layer.
Context = Tensor | Mapping[nn.Module, tuple[Tensor, Tensor]] | None

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}  # gelu: exact, by erf
CONTEXT_GROUPS = 32  # groups of the text's group norm, independent of `norm_groups` (as in IF)


def zero_init(module: nn.Module) -> nn.Module:
    """Set the parameters of `module` to zero, so that a branch that ends in it initially adds nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Return a group norm of gcd(groups, channels) groups."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def apply_norm(
    norm: nn.GroupNorm,
    x_BCHW: Tensor,
    activation: Activation | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute activation(norm(x) (1 + scale) + shift) with modulation = (scale, shift), each [B, C].

    Runs as a fused kernel on devices that have one.
    """
    if kernels.uses_triton(x_BCHW.device):
        arguments = (norm.weight, norm.bias, norm.num_groups, norm.eps, activation or "none", *(modulation or ()))
        return kernels.group_norm(x_BCHW, *arguments)
    frozen_input = torch.is_grad_enabled() and not x_BCHW.requires_grad
    if frozen_input and (norm.weight.requires_grad or norm.bias.requires_grad):
        # NOTE torch's backward pass of channels-last group norm crashes on a CPU if the input needs no gradient, which
        # happens above frozen layers.
        x_BCHW = x_BCHW.contiguous()
    h_BCHW = norm(x_BCHW)
    if modulation is not None:
        scale_BC11, shift_BC11 = (part_BC[:, :, None, None] for part_BC in modulation)
        h_BCHW = torch.addcmul(shift_BC11, h_BCHW, 1 + scale_BC11)
    return h_BCHW if activation is None else ACTIVATIONS[activation](h_BCHW)


def sinusoid(label_B: Tensor, width: int) -> Tensor:
    """Return [cos, sin] features [B, width] of labels in [0, 1000], at frequencies 10^-4..1 (DDPM; IF's order)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=label_B.device, dtype=torch.float32))
    phase = label_B.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """Embed noise labels [B] in [0, 1000] as [B, E]."""

    def __init__(self, features: int, width: int, activation: Activation = "silu"):
        super().__init__()
        self.features = features
        between = nn.SiLU() if activation == "silu" else nn.GELU()
        self.layers = nn.Sequential(nn.Linear(features, width), between, nn.Linear(width, width))

    def forward(self, label_B: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        return self.layers(sinusoid(label_B, self.features).to(dtype))


class TextPooling(nn.Module):
    """Pool text embeddings [B, L, D] to [B, E] by attention with the mean token as query.

    Pooling: App. F.1; layer norms: sec. 2.5.
    """

    def __init__(self, text_width: int, width: int, heads: int | None = None):
        super().__init__()
        # By default about 64 channels per head.
        self.heads = heads or next(n for n in range(max(text_width // 64, 1), 0, -1) if text_width % n == 0)
        self.norm_in = nn.LayerNorm(text_width)
        self.position = nn.Parameter(torch.randn(text_width) / text_width**0.5)
        self.to_q = nn.Linear(text_width, text_width)
        self.to_k = nn.Linear(text_width, text_width)
        self.to_v = nn.Linear(text_width, text_width)
        self.to_out = nn.Linear(text_width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, text_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        text_BLD = self.norm_in(text_BLD)
        if mask_BL is None:
            mean_B1D, mask = text_BLD.mean(1, keepdim=True), None
        else:
            mask_BL1 = mask_BL[..., None].to(text_BLD.dtype)
            mean_B1D = (text_BLD * mask_BL1).sum(1, keepdim=True) / mask_BL1.sum(1, keepdim=True)
            mask = F.pad(mask_BL, (1, 0), value=True)[:, None, None]
        mean_B1D = mean_B1D + self.position
        tokens_BLD = torch.cat([mean_B1D, text_BLD], dim=1)
        q, k, v = (
            _split_heads(x, self.heads) for x in (self.to_q(mean_B1D), self.to_k(tokens_BLD), self.to_v(tokens_BLD))
        )
        pooled_BD = attend(q, k, v, mask).transpose(1, 2).flatten(1)
        return self.norm_out(self.to_out(pooled_BD))


class TokenGroupNorm(nn.GroupNorm):
    """Normalise text [B, L, D] with statistics over all tokens of a caption and the channels of a group (IF)."""

    def forward(self, text_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Normalise with statistics of the tokens where mask_BL is True (None: all). Ignore the other outputs."""
        if mask_BL is None:
            return super().forward(text_BLD.transpose(1, 2)).transpose(1, 2)
        groups_BLGC = text_BLD.unflatten(-1, (self.num_groups, -1))
        mask_BL11 = mask_BL[..., None, None].to(text_BLD.dtype)
        count_B111 = mask_BL11.sum(1, keepdim=True) * groups_BLGC.shape[-1]
        mean_B1G1 = (groups_BLGC * mask_BL11).sum((1, 3), keepdim=True) / count_B111
        variance_B1G1 = ((groups_BLGC - mean_B1G1).square() * mask_BL11).sum((1, 3), keepdim=True) / count_B111
        normal_BLD = ((groups_BLGC - mean_B1G1) * (variance_B1G1 + self.eps).rsqrt()).flatten(2)
        return torch.addcmul(self.bias, normal_BLD, self.weight)


class ResBlock(nn.Module):
    """Add norm, activation, conv3, norm, activation, conv3 to a shortcut (App. B.1; App. F.1 with resampling inside).

    embedding_width: E; the embedding modulates the second norm. None: the block is not conditioned.
    resample: applied to both branches, after the first activation.
    shortcut: a 1x1 convolution even where the channels do not change (Efficient U-Net).
    divisor: divides the sum of both branches (sqrt 2 preserves the variance).
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding_width: int | None,
        groups: int,
        resample: nn.Module | None = None,
        shortcut: bool = False,
        dropout: float = 0.0,
        activation: Activation = "silu",
        divisor: float = 1.0,
    ):
        super().__init__()
        self.activation = activation
        self.divisor = divisor
        self.resample = resample
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.modulation = None if embedding_width is None else nn.Linear(embedding_width, 2 * channels)
        self.norm2 = group_norm(channels, groups)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if shortcut or channels_in != channels else None

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        h_BCHW = apply_norm(self.norm1, x_BCHW, self.activation)
        if self.resample is not None:
            h_BCHW, x_BCHW = self.resample(h_BCHW), self.resample(x_BCHW)
        modulation = None if self.modulation is None else self.modulation(embedding_BE).unflatten(1, (2, -1)).unbind(1)
        h_BCHW = apply_norm(self.norm2, self.conv1(h_BCHW), self.activation, modulation)
        if self.dropout is not None:
            h_BCHW = self.dropout(h_BCHW)
        if self.shortcut is not None:
            x_BCHW = self.shortcut(x_BCHW)
        x_BCHW = x_BCHW + self.conv2(h_BCHW)
        return x_BCHW if self.divisor == 1 else x_BCHW / self.divisor


class Attention(nn.Module):
    """Attend from pixels to pixels ("self"), to text ("cross"), or to both at once ("fused").

    Fused attention concatenates the keys and values of text to those of pixels (App. D.3.1).
    """

    def __init__(
        self,
        channels: int,
        kind: AttentionKind,
        context_width: int,
        head_channels: int,
        groups: int,
        context_norm: ContextNorm = "layer",
    ):
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"{channels} channels do not divide into heads of {head_channels}")
        self.heads = channels // head_channels
        self.norm = group_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = self.to_v = self.context_norm = self.context_k = self.context_v = None
        if kind in ("self", "fused"):
            self.to_k, self.to_v = nn.Linear(channels, channels), nn.Linear(channels, channels)
        if kind in ("cross", "fused"):
            self.context_norm = (
                nn.LayerNorm(context_width)
                if context_norm == "layer"
                else TokenGroupNorm(math.gcd(CONTEXT_GROUPS, context_width), context_width)
            )
            self.context_k, self.context_v = nn.Linear(context_width, channels), nn.Linear(context_width, channels)
        self.to_out = zero_init(nn.Linear(channels, channels))

    @property
    def attends_to_text(self) -> bool:
        """Return whether the keys and values include text."""
        return self.context_norm is not None

    def keys_and_values(self, context_BLD: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the text, each [B, L, C]."""
        assert self.context_norm is not None and self.context_k is not None and self.context_v is not None
        if isinstance(self.context_norm, TokenGroupNorm):
            context_BLD = self.context_norm(context_BLD, mask_BL)
        else:
            context_BLD = self.context_norm(context_BLD)
        return self.context_k(context_BLD), self.context_v(context_BLD)

    def forward(self, x_BCHW: Tensor, context: Context, mask_BL: Tensor | None) -> Tensor:
        pixels_BNC = apply_norm(self.norm, x_BCHW).flatten(2).transpose(1, 2)
        keys, values, mask = [], [], None
        if self.to_k is not None and self.to_v is not None:
            keys, values = [self.to_k(pixels_BNC)], [self.to_v(pixels_BNC)]
        if self.attends_to_text:
            assert context is not None
            k_BLC, v_BLC = self.keys_and_values(context, mask_BL) if isinstance(context, Tensor) else context[self]
            keys, values = [k_BLC, *keys], [v_BLC, *values]
            if mask_BL is not None:  # the mask hides padding tokens, and no pixels
                pixels = pixels_BNC.shape[1] if self.to_k is not None else 0
                mask = F.pad(mask_BL, (0, pixels), value=True)[:, None, None]
        q = _split_heads(self.to_q(pixels_BNC), self.heads)
        k, v = _split_heads(torch.cat(keys, 1), self.heads), _split_heads(torch.cat(values, 1), self.heads)
        h_BNC = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        return x_BCHW + self.to_out(h_BNC).transpose(1, 2).reshape(x_BCHW.shape)


class FeedForward(nn.Module):
    """Add two 1x1 convolutions with a GELU between them, applied to the normalised input, to the input."""

    def __init__(self, channels: int, expansion: int, groups: int):
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(channels, groups),
            nn.Conv2d(channels, expansion * channels, 1),
            nn.GELU(),
            zero_init(nn.Conv2d(expansion * channels, channels, 1)),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        norm, *convolutions = self.layers
        assert isinstance(norm, nn.GroupNorm)
        h_BCHW = apply_norm(norm, x_BCHW)
        for layer in convolutions:
            h_BCHW = layer(h_BCHW)
        return x_BCHW + h_BCHW


class NearestUpsample(nn.Module):
    """Upsample by an integer factor with nearest neighbours."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.interpolate(x_BCHW, scale_factor=self.factor, mode="nearest")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt c) v over [B, heads, L, c]. mask: True where a key may be attended to.

    Small attention in bfloat16 training on a CPU evaluates the formula directly, because the backward pass of torch's
    fused kernel takes three times as long (29 ms compared with 9 ms for 32 x 4 heads, 64 queries and 78 keys). With
    1024 queries, or in float32, the kernel is faster.
    """
    small = q.dtype == torch.bfloat16 and q.shape[-2] * k.shape[-2] <= 128 * 128
    if q.device.type != "cpu" or not small or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def _split_heads(x_BLC: Tensor, heads: int) -> Tensor:
    """Reshape [B, L, heads * c] to [B, heads, L, c]."""
    return x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)
