"""Parts of the U-Net: embeddings of numbers, residual blocks, attention, resampling.

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

# The text that attention is given: tokens [B, L, D], or the keys and values that each layer has made of them already.
Context = Tensor | Mapping[nn.Module, tuple[Tensor, Tensor]] | None

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}  # gelu: the exact one
CONTEXT_GROUPS = 32  # of the group norm of text, whatever the groups of the pixels' norms (as in IF)


def zeroed(module: nn.Module) -> nn.Module:
    """Start `module` at zero, so that the branch it ends adds nothing at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group norm of `groups` groups, or the most of them that divide a narrow layer."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def normed(
    norm: nn.GroupNorm,
    x_BCHW: Tensor,
    activation: Activation | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """activation(norm(x) (1 + scale) + shift) with scale and shift [B, C]: one kernel of our own where there is one."""
    if kernels.fused(x_BCHW.device):
        what = (norm.weight, norm.bias, norm.num_groups, norm.eps, activation or "none", *(modulation or ()))
        return kernels.group_norm(x_BCHW, *what)
    h_BCHW = norm(x_BCHW)
    if modulation is not None:
        scale_BC11, shift_BC11 = (part_BC[:, :, None, None] for part_BC in modulation)
        h_BCHW = torch.addcmul(shift_BC11, h_BCHW, 1 + scale_BC11)
    return h_BCHW if activation is None else ACTIVATIONS[activation](h_BCHW)


def sinusoid(label_B: Tensor, width: int) -> Tensor:
    """[cos, sin] features [B, width] of labels in [0, 1000]; frequencies 10^-4..1 (DDPM; order as in IF)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=label_B.device, dtype=torch.float32))
    phase = label_B.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """Noise label [B] in [0, 1000] -> embedding [B, E]."""

    def __init__(self, features: int, width: int, activation: Activation = "silu"):
        super().__init__()
        self.features = features
        between = nn.SiLU() if activation == "silu" else nn.GELU()
        self.layers = nn.Sequential(nn.Linear(features, width), between, nn.Linear(width, width))

    def forward(self, label_B: Tensor) -> Tensor:
        dtype = next(self.layers.parameters()).dtype
        return self.layers(sinusoid(label_B, self.features).to(dtype))


class TextPooling(nn.Module):
    """Attention-pooled text [B, L, D] -> [B, E]; the query is the mean token (App. F.1 pools, 2.5 normalises)."""

    def __init__(self, text_width: int, width: int, heads: int | None = None):
        super().__init__()
        self.heads = heads or max(text_width // 64, 1)
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
            kept_BL1 = mask_BL[..., None].to(text_BLD.dtype)
            mean_B1D = (text_BLD * kept_BL1).sum(1, keepdim=True) / kept_BL1.sum(1, keepdim=True)
            mask = F.pad(mask_BL, (1, 0), value=True)[:, None, None]
        mean_B1D = mean_B1D + self.position
        tokens_BLD = torch.cat([mean_B1D, text_BLD], dim=1)
        q, k, v = (
            _split_heads(x, self.heads) for x in (self.to_q(mean_B1D), self.to_k(tokens_BLD), self.to_v(tokens_BLD))
        )
        pooled_BD = attend(q, k, v, mask).transpose(1, 2).flatten(1)
        return self.norm_out(self.to_out(pooled_BD))


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of text [B, L, D]: a caption's statistics run over the channels of a group and all its tokens (IF)."""

    def forward(self, text_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """mask_BL: True at the tokens that count (None: all); the others are normalised with them, and mean nothing."""
        if mask_BL is None:
            return super().forward(text_BLD.transpose(1, 2)).transpose(1, 2)
        groups_BLGC = text_BLD.unflatten(-1, (self.num_groups, -1))
        kept_BL11 = mask_BL[..., None, None].to(text_BLD.dtype)
        count_B111 = kept_BL11.sum(1, keepdim=True) * groups_BLGC.shape[-1]
        mean_B1G1 = (groups_BLGC * kept_BL11).sum((1, 3), keepdim=True) / count_B111
        variance_B1G1 = ((groups_BLGC - mean_B1G1).square() * kept_BL11).sum((1, 3), keepdim=True) / count_B111
        normal_BLD = ((groups_BLGC - mean_B1G1) * (variance_B1G1 + self.eps).rsqrt()).flatten(2)
        return torch.addcmul(self.bias, normal_BLD, self.weight)


class ResBlock(nn.Module):
    """norm, swish, conv3, norm, swish, conv3, beside a shortcut (App. B.1, and F.1 with resampling inside).

    `embedding_width` E: the embedding scales and shifts the second norm; None: the block is not conditioned.
    `shortcut`: a 1x1 convolution even where the channels do not change (Efficient U-Net).
    `divisor`: of the sum of both ways (sqrt 2 keeps its variance).
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
        self.conv2 = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if shortcut or channels_in != channels else None

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        h_BCHW = normed(self.norm1, x_BCHW, self.activation)
        if self.resample is not None:
            h_BCHW, x_BCHW = self.resample(h_BCHW), self.resample(x_BCHW)
        modulation = None if self.modulation is None else self.modulation(embedding_BE).unflatten(1, (2, -1)).unbind(1)
        h_BCHW = normed(self.norm2, self.conv1(h_BCHW), self.activation, modulation)
        if self.dropout is not None:
            h_BCHW = self.dropout(h_BCHW)
        if self.shortcut is not None:
            x_BCHW = self.shortcut(x_BCHW)
        x_BCHW = x_BCHW + self.conv2(h_BCHW)
        return x_BCHW if self.divisor == 1 else x_BCHW / self.divisor


class Attention(nn.Module):
    """Attention of pixels to pixels ("self"), to text ("cross"), or to both at once ("fused").

    Fused: text tokens are joined to the keys and values of self-attention (App. D.3.1).
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
        self.to_out = zeroed(nn.Linear(channels, channels))

    @property
    def attends_to_text(self) -> bool:
        """Whether keys and values include those of text."""
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
        pixels_BNC = normed(self.norm, x_BCHW).flatten(2).transpose(1, 2)
        keys, values, mask = [], [], None
        if self.to_k is not None and self.to_v is not None:
            keys, values = [self.to_k(pixels_BNC)], [self.to_v(pixels_BNC)]
        if self.attends_to_text:
            assert context is not None
            k_BLC, v_BLC = self.keys_and_values(context, mask_BL) if isinstance(context, Tensor) else context[self]
            keys, values = [k_BLC, *keys], [v_BLC, *values]
            if mask_BL is not None:  # every pixel may be attended to, of the text only real tokens
                pixels = pixels_BNC.shape[1] if self.to_k is not None else 0
                mask = F.pad(mask_BL, (0, pixels), value=True)[:, None, None]
        q = _split_heads(self.to_q(pixels_BNC), self.heads)
        k, v = _split_heads(torch.cat(keys, 1), self.heads), _split_heads(torch.cat(values, 1), self.heads)
        h_BNC = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        return x_BCHW + self.to_out(h_BNC).transpose(1, 2).reshape(x_BCHW.shape)


class FeedForward(nn.Module):
    """Two 1x1 convolutions with GELU between, on normalised pixels, added to its input."""

    def __init__(self, channels: int, expansion: int, groups: int):
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(channels, groups),
            nn.Conv2d(channels, expansion * channels, 1),
            nn.GELU(),
            zeroed(nn.Conv2d(expansion * channels, channels, 1)),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        norm, *convolutions = self.layers
        assert isinstance(norm, nn.GroupNorm)
        h_BCHW = normed(norm, x_BCHW)
        for layer in convolutions:
            h_BCHW = layer(h_BCHW)
        return x_BCHW + h_BCHW


class NearestUpsample(nn.Module):
    """Nearest-neighbour upsampling by a whole factor."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.interpolate(x_BCHW, scale_factor=self.factor, mode="nearest")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt c) v over [B, heads, L, c]; mask: True where a key may be attended to.

    Few pixels in bfloat16 training on a CPU take the formula itself: the backward of torch's fused kernel takes three
    times as long there (29 against 9 ms for 32 x 4 heads of 64 queries and 78 keys). With 1024 queries, or in float32,
    the kernel wins.
    """
    few = q.dtype == torch.bfloat16 and q.shape[-2] * k.shape[-2] <= 128 * 128
    if q.device.type != "cpu" or not few or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def _split_heads(x_BLC: Tensor, heads: int) -> Tensor:
    """[B, L, heads * c] -> [B, heads, L, c]"""
    return x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)
