"""Blocks of the U-Net, and the resampling between its levels.

Shape legend: see `imagen.models.layers`.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from imagen.models.config import Level, UNetConfig
from imagen.models.layers import Attention, Context, FeedForward, NearestUpsample, ResBlock


class Block(nn.Module):
    """Apply a residual block, then the level's attention and feed-forward layer, if any."""

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
    """The blocks of a level in the down or up path, and the resampling before (down) or after (up) them."""

    blocks: Iterable[Block]

    def __init__(self, blocks: list[Block], resample: nn.Module | None, combine: nn.Module | None):
        super().__init__()
        self.resample = resample
        self.combine = combine  # projects the embedding to the level's channels
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # a ModuleList is not generic

    def apply_resampling(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Downsample or upsample x; return it unchanged if the level has no resampling."""
        if isinstance(self.resample, ResBlock):
            return self.resample(x_BCHW, embedding_BE)
        return x_BCHW if self.resample is None else self.resample(x_BCHW)

    def add_embedding(self, x_BCHW: Tensor, embedding_BE: Tensor) -> Tensor:
        """Add the projected embedding to every pixel, if the level is modulated on entry."""
        return x_BCHW if self.combine is None else x_BCHW + self.combine(embedding_BE)[:, :, None, None]


def attends_after(level: Level, index: int, count: int) -> bool:
    """Return whether attention follows residual block `index` of `count`."""
    return level.attend == "each" or index == count - 1


def embedding_projection(config: UNetConfig, channels: int) -> nn.Module | None:
    """Return the projection of the embedding to a level's channels, or None if blocks are modulated instead."""
    return nn.Linear(config.time_width, channels) if config.modulation == "level" else None


def downsample(config: UNetConfig, level: Level, channels: int) -> tuple[nn.Module | None, int]:
    """Return the module that downsamples `channels` of the level above into `level`, and its output channels."""
    if config.family == "efficient":
        return nn.Conv2d(channels, level.channels, 3, stride=level.stride, padding=1), level.channels
    if level.stride == 1:
        return None, channels
    pool = nn.AvgPool2d(level.stride)
    if config.resample == "plain":
        return pool, channels
    if config.resample == "residual":
        return _residual(config, channels, channels, pool), channels
    return nn.Conv2d(channels, channels, 3, stride=level.stride, padding=1), channels


def upsample(config: UNetConfig, level: Level, channels: int, channels_above: int) -> tuple[nn.Module | None, int]:
    """Return the module that upsamples `level` to the level above, and its output channels."""
    nearest = NearestUpsample(level.stride)
    if config.family == "efficient":
        return nn.Sequential(nearest, nn.Conv2d(channels, channels_above, 3, padding=1)), channels_above
    if level.stride == 1:
        return None, channels
    if config.resample == "plain":
        return nearest, channels
    if config.resample == "residual":
        return _residual(config, channels, channels, nearest), channels
    return nn.Sequential(nearest, nn.Conv2d(channels, channels, 3, padding=1)), channels


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
