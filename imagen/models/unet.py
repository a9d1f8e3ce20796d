"""One U-Net, described by a list of levels.

The same class is the paper's base model (App. F.1, after guided diffusion), its
Efficient U-Net (App. B.1, F.2, F.3), the three stages of DeepFloyd IF and the small
models of the demo: they differ in their `UNetConfig` alone.

Shape legend: see `imagen.models.layers`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.models.config import Level, UNetConfig
from imagen.models.layers import (
    ACTIVATIONS,
    Attention,
    Context,
    FeedForward,
    NearestUpsample,
    NoiseEmbedding,
    ResBlock,
    TextPooling,
    group_norm,
    normed,
    zeroed,
)

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Block(nn.Module):
    """A residual block and, where the level has them, attention and a feed-forward layer."""

    def __init__(self, config: UNetConfig, level: Level, channels_in: int, attend: bool):
        super().__init__()
        self.residual = _residual(config, channels_in, level.channels)
        self.attention = self.feed_forward = None
        if attend and level.attention != "none":
            self.attention = Attention(
                level.channels,
                level.attention,
                config.context_width,
                config.head_channels,
                config.norm_groups,
                config.context_norm,
            )
            if level.feed_forward:
                self.feed_forward = FeedForward(level.channels, level.feed_forward, config.norm_groups)

    def forward(self, x_BCHW: Tensor, embedding_BE: Tensor, context: Context, mask_BL: Tensor | None) -> Tensor:
        x_BCHW = self.residual(x_BCHW, embedding_BE)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW, context, mask_BL)
        if self.feed_forward is not None:
            x_BCHW = self.feed_forward(x_BCHW)
        return x_BCHW


class UNetLevel(nn.Module):
    """A level of the down or the up path: its blocks, and the resampling into it (down) or out of it (up)."""

    blocks: Iterable[Block]

    def __init__(self, blocks: list[Block], resample: nn.Module | None, combine: nn.Module | None):
        super().__init__()
        self.resample = resample
        self.combine = combine  # embedding -> channels, added on entry
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # a ModuleList does not say of what

    def resampled(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        if isinstance(self.resample, ResBlock):
            return self.resample(x_BCHW, embedding_BE)
        return x_BCHW if self.resample is None else self.resample(x_BCHW)

    def add_embedding(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        return x_BCHW if self.combine is None else x_BCHW + self.combine(embedding_BE)[:, :, None, None]


class TextCache(NamedTuple):
    """What a U-Net computes from a text alone: the pooled text, and cross-attention keys and values."""

    pooled_BE: Tensor
    context: Mapping[nn.Module, tuple[Tensor, Tensor]]  # keys and values of each attention layer, [B, L, C]


class UNet(nn.Module):
    """Predicts eps, x0 or v (whatever it is trained for) from a noised picture."""

    down: Iterable[UNetLevel]  # from the largest pictures to the smallest
    middle: Iterable[Block]
    up: Iterable[UNetLevel]  # back again

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        levels, E = config.levels, config.time_width
        stem = config.stem_channels or levels[0].channels
        per_pixel = config.image_channels * config.patch**2

        self.act = ACTIVATIONS[config.activation]
        self.noise_embedding = NoiseEmbedding(stem, E, config.activation)
        self.low_res_embedding = NoiseEmbedding(stem, E, config.activation) if config.low_res else None
        self.text_pooling = TextPooling(config.text_width, E, config.pooling_heads) if config.text_width else None
        self.text_projection = None  # where nothing attends to text, it is pooled alone
        if config.text_width and config.attends_to_text:
            self.text_projection = nn.Linear(config.text_width, config.context_width)
        self.conv_in = nn.Conv2d(per_pixel * (1 + config.low_res) + 2 * config.coordinates, stem, 3, padding=1)

        entries = 1 if config.family == "guided" else 0  # guided: what enters a level is kept for the way up, too
        kept: list[int] = []  # channels of what is kept
        channels = stem
        down = []
        for level in levels:
            resample, channels = _downsample(config, level, channels)
            kept += [channels] * entries
            combine = _combine(config, channels)
            blocks = []
            for index in range(level.blocks):
                blocks.append(Block(config, level, channels, _attends(level, index, level.blocks)))
                channels = level.channels
                kept.append(channels)
            down.append(UNetLevel(blocks, resample, combine))

        bottom = replace(levels[-1], attention=config.middle_attention or levels[-1].attention)
        middle = [Block(config, bottom, channels, attend) for attend in (True, False)] if config.middle else []

        up = []
        for index in reversed(range(len(levels))):
            level, count = levels[index], levels[index].blocks + entries
            combine = _combine(config, channels)
            blocks = []
            for number in range(count):
                joined = channels + kept.pop() if config.skip == "concat" else kept.pop()
                blocks.append(Block(config, level, joined, _attends(level, number, count)))
                channels = level.channels
            resample, channels = _upsample(config, level, channels, levels[index - 1].channels if index else stem)
            up.append(UNetLevel(blocks, resample, combine))

        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)  # type: ignore[assignment]
        self.norm_out = group_norm(channels, config.norm_groups)
        self.conv_out = zeroed(nn.Conv2d(channels, per_pixel * (1 + config.learned_variance), 3, padding=1))

    def cache_text(self, text_BLD: Tensor, mask_BL: Tensor | None = None) -> TextCache:
        """Compute what `forward` needs of `text` and `text_mask`, once for all sampler steps with them.

        For sampling. In training each layer computes its own: sharded parameters are gathered only while it runs.
        """
        if (dtype := self.norm_out.weight.dtype) in LOW_PRECISION:
            text_BLD = text_BLD.to(dtype)
        pooled_BE, context_BLD = self._pooled(text_BLD, mask_BL)
        cached: dict[nn.Module, Any] = {}
        if context_BLD is not None:
            layers = (module for module in self.modules() if isinstance(module, Attention) and module.attends_to_text)
            cached = {layer: layer.keys_and_values(context_BLD, mask_BL) for layer in layers}
        return TextCache(pooled_BE, cached)

    def _pooled(self, text_BLD: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert self.text_pooling is not None
        context_BLD = None if self.text_projection is None else self.text_projection(text_BLD)
        return self.text_pooling(text_BLD, mask_BL), context_BLD

    def forward(
        self,
        x_BCHW: Tensor,
        noise_B: Tensor,
        *,
        text: Tensor | TextCache | None = None,
        text_mask: Tensor | None = None,
        low_res: Tensor | None = None,
        low_res_noise: Tensor | None = None,
    ) -> Tensor:
        """Predict from noised pictures x [B, 3, H, W]; H and W divide by `config.total_stride`.

        noise_B: labels of x's noise in [0, 1000] (`diffusion.schedule.build_label`).
        text: token embeddings [B, L, D], or what `cache_text` made of them; text_mask: [B, L], True at real tokens
        (None: all are).
        low_res: the low-resolution images, noised and upsampled to H x W; low_res_noise: their labels [B].
        Returns [B, 3, H, W], or [B, 6, H, W] with learned variance.
        """
        height, width = x_BCHW.shape[-2:]
        if height % self.config.total_stride or width % self.config.total_stride:
            raise UserError(f"this U-Net takes sides that divide by {self.config.total_stride}, not {height}x{width}")

        dtype = self.norm_out.weight.dtype
        if dtype in LOW_PRECISION:  # all of the network is, so it needs no autocast; else autocast sees to its inputs
            x_BCHW, low_res = x_BCHW.to(dtype), None if low_res is None else low_res.to(dtype)
            text = text.to(dtype) if isinstance(text, Tensor) else text
        embedding_BE = self.noise_embedding(noise_B)
        context: Context = None
        if self.text_pooling is not None:
            if text is None:
                raise ValueError("this U-Net is conditioned on text, but got none")
            pooled_BE, context = text if isinstance(text, TextCache) else self._pooled(text, text_mask)
            embedding_BE = embedding_BE + pooled_BE
        if self.low_res_embedding is not None:
            if low_res is None or low_res_noise is None:
                raise ValueError("this U-Net is conditioned on a low-resolution picture, but got none")
            embedding_BE = embedding_BE + self.low_res_embedding(low_res_noise)
            x_BCHW = torch.cat([x_BCHW, low_res], dim=1)
        embedding_BE = self.act(embedding_BE)
        conditions = (embedding_BE, context, text_mask)

        patch = self.config.patch
        h_BCHW = x_BCHW if patch == 1 else F.pixel_unshuffle(x_BCHW, patch)
        if self.config.coordinates:
            h_BCHW = torch.cat([h_BCHW, _coordinates(h_BCHW)], dim=1)
        h_BCHW = self.conv_in(h_BCHW)
        kept: list[Tensor] = []
        for level in self.down:
            h_BCHW = level.resampled(h_BCHW, embedding_BE)
            if self.config.family == "guided":
                kept.append(h_BCHW)
            h_BCHW = level.add_embedding(h_BCHW, embedding_BE)
            for block in level.blocks:
                h_BCHW = block(h_BCHW, *conditions)
                kept.append(h_BCHW)
        for block in self.middle:
            h_BCHW = block(h_BCHW, *conditions)
        for level in self.up:
            h_BCHW = level.add_embedding(h_BCHW, embedding_BE)
            for block in level.blocks:
                h_BCHW = block(self._join(h_BCHW, kept.pop()), *conditions)
            h_BCHW = level.resampled(h_BCHW, embedding_BE)
        out_BCHW = self.conv_out(normed(self.norm_out, h_BCHW, self.config.activation))
        return out_BCHW if patch == 1 else F.pixel_shuffle(out_BCHW, patch)

    def _join(self, h_BCHW: Tensor, kept_BCHW: Tensor) -> Tensor:
        if self.config.family == "efficient":
            kept_BCHW = kept_BCHW * 2**-0.5  # App. B.1: faster convergence
        if self.config.skip == "add":
            return h_BCHW + kept_BCHW
        return torch.cat([h_BCHW, kept_BCHW], dim=1)


def cast_copy(unet: UNet, dtype: torch.dtype, device: torch.device | None = None) -> UNet:
    """A U-Net of the same weights in `dtype`, layout kept; device: another one to lie on."""
    with torch.device("meta"):
        other = UNet(unet.config)
    weights = {name: value.detach().to(device, dtype) for name, value in unet.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other.train(unet.training)


class TextCachingUNet:
    """A U-Net with cached cross-attention keys and values: in sampling every step has the same text.

    A text is recognised by its tensor object, so the tensor must not change. The U-Net's weights must not change
    either: the cache would be stale.
    """

    def __init__(self, unet: UNet):
        self.unet = unet
        self._caches: list[tuple[Tensor, TextCache]] = []

    def __call__(self, x_BCHW: Tensor, noise_B: Tensor, *, text: Tensor | TextCache, **conditions: Any) -> Tensor:
        if isinstance(text, TextCache):
            return self.unet(x_BCHW, noise_B, text=text, **conditions)
        cache = next((cache for known, cache in self._caches if known is text), None)
        if cache is None:
            cache = self.unet.cache_text(text, conditions.get("text_mask"))
            self._caches = [*self._caches[-1:], (text, cache)]  # two: with and without the unconditional half
        return self.unet(x_BCHW, noise_B, text=cache, **conditions)


def _coordinates(like_BCHW: Tensor) -> Tensor:
    """y and x of each pixel, from -1 to 1, as two channels [B, 2, H, W]."""
    B, _, H, W = like_BCHW.shape
    y_H, x_W = (torch.linspace(-1, 1, side, dtype=like_BCHW.dtype, device=like_BCHW.device) for side in (H, W))
    return torch.stack(torch.meshgrid(y_H, x_W, indexing="ij")).expand(B, -1, -1, -1)


def _residual(config: UNetConfig, channels_in: int, channels: int, resample: nn.Module | None = None) -> ResBlock:
    return ResBlock(
        channels_in,
        channels,
        embedding_width=config.time_width if config.modulation == "block" else None,
        groups=config.norm_groups,
        resample=resample,
        shortcut=config.shortcut == "conv",
        dropout=config.dropout,
        activation=config.activation,
        divisor=config.residual_divisor,
    )


def _attends(level: Level, index: int, count: int) -> bool:
    return level.attend == "each" or index == count - 1


def _combine(config: UNetConfig, channels: int) -> nn.Module | None:
    return nn.Linear(config.time_width, channels) if config.modulation == "level" else None


def _downsample(config: UNetConfig, level: Level, channels: int) -> tuple[nn.Module | None, int]:
    """What leads from `channels` of the level above into `level`, and the channels it makes."""
    if config.family == "efficient":
        return nn.Conv2d(channels, level.channels, 3, stride=level.stride, padding=1), level.channels
    if level.stride == 1:
        return None, channels
    shrink = nn.AvgPool2d(level.stride)
    if config.resample == "plain":
        return shrink, channels
    if config.resample == "residual":
        return _residual(config, channels, channels, shrink), channels
    return nn.Conv2d(channels, channels, 3, stride=level.stride, padding=1), channels


def _upsample(config: UNetConfig, level: Level, channels: int, channels_above: int) -> tuple[nn.Module | None, int]:
    """What leads from `level` back to the level above, and the channels it makes."""
    enlarge = NearestUpsample(level.stride)
    if config.family == "efficient":
        return nn.Sequential(enlarge, nn.Conv2d(channels, channels_above, 3, padding=1)), channels_above
    if level.stride == 1:
        return None, channels
    if config.resample == "plain":
        return enlarge, channels
    if config.resample == "residual":
        return _residual(config, channels, channels, enlarge), channels
    return nn.Sequential(enlarge, nn.Conv2d(channels, channels, 3, padding=1)), channels
