"""Define the configuration of a U-Net and its levels."""

import math
from dataclasses import dataclass
from typing import Literal

from imagen import limits
from imagen.errors import UserError, check_number
from imagen.models.layers import Activation, AttentionKind, ContextNorm


@dataclass(frozen=True, kw_only=True)
class Level:
    """Configure one resolution of the U-Net, in both the down and the up path."""

    channels: int  # of the feature maps; multiples of 64 are fastest on GPUs
    blocks: int  # residual blocks in the down path
    stride: int = 2  # downsampling factor on entry
    # self: pixels attend to pixels. cross: pixels attend to text. fused: to both in one layer.
    attention: AttentionKind = "none"
    attend: Literal["each", "last"] = "each"  # attention after every residual block, or only after the last
    feed_forward: int = 0  # expansion of a feed-forward layer after attention; 0: none


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Configure the structure of a U-Net. No field can be derived from the others."""

    levels: tuple[Level, ...]  # from the highest resolution to the lowest
    image_channels: int = 3  # 3: RGB; 1: grey
    patch: int = 1  # pixel-unshuffle factor of the stem; the network runs at 1 / patch of the resolution
    stem_channels: int | None = None  # None: the channels of the first level
    coordinates: bool = False  # the stem also receives y and x in [-1, 1] (CoordConv, 1807.03247); excludes crops
    low_res: bool = False  # also conditioned on a low-resolution image and the noise label of its augmentation
    learned_variance: bool = False  # outputs twice the channels: prediction, then variance (2102.09672)
    text_width: int | None = None  # text embedding dimension; None: no text conditioning
    context_width: int = 512  # text tokens are projected to this dimension before attention
    time_width: int = 512  # embedding dimension of noise level and pooled text
    head_channels: int = 64  # channels per attention head
    norm_groups: int = 32  # groups per group norm; fewer are much faster on a CPU in layers of few channels
    # Where channels change, and which tensors the skip connections carry:
    # "guided"    resampling preserves the channels, and the first residual block of a level changes them. The outputs
    #             of the stem, every block and every resampling are each concatenated to the input of one block of the
    #             up path, which has one more block per level.
    # "efficient" strided convolutions change the channels. Every block's output, times 1/sqrt 2, is joined to the
    #             input of its counterpart in the up path.
    family: Literal["guided", "efficient"] = "guided"
    # guided only: a convolution; a residual block with resampling inside; or mean pooling and nearest-neighbour
    # upsampling, which have no weights
    resample: Literal["conv", "residual", "plain"] = "conv"
    skip: Literal["concat", "add"] = "concat"  # efficient only: how skip connections join
    modulation: Literal["block", "level"] = "block"  # the embedding modulates every block, or is added on entry
    shortcut: Literal["identity", "conv"] = "identity"  # around residual blocks that preserve the channels
    middle: bool = True  # middle block: residual, attention, residual
    middle_attention: AttentionKind | None = None  # None: the attention of the last level
    activation: Activation = "silu"  # of the whole network except feed-forward layers
    # Norm of text tokens in attention: per token over its dimensions, or over all tokens in 32 groups (IF).
    context_norm: ContextNorm = "layer"
    pooling_heads: int | None = None  # heads of the text's attention pooling; None: heads of 64 channels
    residual_divisor: float = 1.0  # divides the sum in every residual block; 1 / 0.7071 in IF's super-resolution
    dropout: float = 0.0  # in residual blocks

    def __post_init__(self) -> None:
        if not self.levels:
            raise UserError("a U-Net needs at least one level")
        check_number("the number of levels", len(self.levels), most=limits.LEVELS)
        for index, level in enumerate(self.levels):
            limits.check(level, limits.LEVEL, f"levels[{index}].")
        blocks = sum(level.blocks for level in self.levels)
        check_number("the number of blocks of all levels", blocks, most=limits.BLOCKS)
        limits.check(self, limits.UNET)
        if self.pooling_heads and self.text_width is not None and self.text_width % self.pooling_heads:
            raise UserError(f"text_width {self.text_width} is not divisible by pooling_heads {self.pooling_heads}")
        if (self.stem_channels or self.levels[0].channels) % 2:
            raise UserError("the stem's channels must be even: the noise embedding has as many cosines and sines")
        if self.family == "guided" and (self.skip != "concat" or self.modulation != "block"):
            raise UserError("family 'guided' concatenates its skips and modulates each block")
        attentions = [(f"level {i}", level.channels, level.attention) for i, level in enumerate(self.levels)]
        if self.middle and self.middle_attention is not None:
            attentions.append(("the middle", self.levels[-1].channels, self.middle_attention))
        for where, channels, kind in attentions:
            if kind in ("cross", "fused") and self.text_width is None:
                raise UserError(f"{where} attends to text, but text_width is not set")
            if kind != "none" and channels % self.head_channels:
                raise UserError(f"{where}: {channels} channels are not divisible by head_channels {self.head_channels}")

    @property
    def attends_to_text(self) -> bool:
        """Return whether any layer attends to text tokens."""
        kinds = [level.attention for level in self.levels]
        if self.middle and self.middle_attention is not None:
            kinds.append(self.middle_attention)
        return "cross" in kinds or "fused" in kinds

    @property
    def total_stride(self) -> int:
        """Return the number that the height and width of images must be divisible by."""
        return self.patch * math.prod(
            [level.stride for level in self.levels]
        )  # a generator would break a compiled graph
