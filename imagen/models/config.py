"""What a U-Net is: its levels, and what they have in common."""

import math
from dataclasses import dataclass
from typing import Literal

from imagen import limits
from imagen.errors import UserError, check_number
from imagen.models.layers import Activation, AttentionKind, ContextNorm


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of the U-Net, used once on the way down and once on the way up."""

    channels: int
    blocks: int  # residual blocks on the way down
    stride: int = 2  # by how much the picture shrinks on entering
    attention: AttentionKind = "none"
    attend: Literal["each", "last"] = "each"  # attention after every residual block, or after the last alone
    feed_forward: int = 0  # expansion of a feed-forward layer after attention; 0: none


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Structure of a U-Net; nothing here can be derived from something else here."""

    levels: tuple[Level, ...]
    image_channels: int = 3
    patch: int = 1  # pixel-unshuffle factor of the stem: the network works on pictures this much smaller
    stem_channels: int | None = None  # None: those of the first level
    coordinates: bool = False  # the stem also sees where it is: y and x from -1 to 1 (CoordConv, 1807.03247); no crops
    low_res: bool = False  # also takes a low-resolution picture and the label of its noise
    learned_variance: bool = False  # outputs twice the channels: prediction, then variance (2102.09672)
    text_width: int | None = None  # numbers a text token; None: the model knows no text
    context_width: int = 512  # text tokens are projected to this before attention
    time_width: int = 512  # of the embedding of noise level and pooled text
    head_channels: int = 64
    norm_groups: int = 32  # of group norms; fewer are much faster on a CPU where a layer is narrow
    # Where channels change and what is kept for the way up:
    # "guided"    resampling keeps the channels, the first residual block changes them; the stem, every block and
    #             every resampling is concatenated to the input of one block of the way up (one more block a level).
    # "efficient" strided convolutions change the channels; every block's output is joined, times 1/sqrt 2, to its
    #             mirror image.
    family: Literal["guided", "efficient"] = "guided"
    # guided only: a convolution; a residual block with resampling inside; mean down and nearest up, without weights
    resample: Literal["conv", "residual", "plain"] = "conv"
    skip: Literal["concat", "add"] = "concat"  # efficient only: how the ways down and up are joined
    modulation: Literal["block", "level"] = "block"  # the embedding scales and shifts in blocks, or is added on entry
    shortcut: Literal["identity", "conv"] = "identity"  # around residual blocks that keep their channels
    middle: bool = True  # residual, attention, residual at the bottom
    middle_attention: AttentionKind | None = None  # None: that of the last level
    activation: Activation = "silu"  # of the whole network, feed-forward layers excepted
    # Of the text in attention: over the numbers of a token, or over those of all tokens in 32 groups (IF).
    context_norm: ContextNorm = "layer"
    pooling_heads: int | None = None  # of the text's attention pooling; None: as many as have 64 channels each
    residual_divisor: float = 1.0  # of every residual block's sum; 1 / 0.7071 in IF's super-resolution
    dropout: float = 0.0

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
            raise UserError(f"text_width {self.text_width} does not divide by pooling_heads {self.pooling_heads}")
        if (self.stem_channels or self.levels[0].channels) % 2:
            raise UserError("the stem's channels must be even: they are cosines and sines of the noise level, too")
        if self.family == "guided" and (self.skip != "concat" or self.modulation != "block"):
            raise UserError("family 'guided' concatenates its skips and modulates each block")
        attentions = [(f"level {i}", level.channels, level.attention) for i, level in enumerate(self.levels)]
        if self.middle and self.middle_attention is not None:
            attentions.append(("the middle", self.levels[-1].channels, self.middle_attention))
        for where, channels, kind in attentions:
            if kind in ("cross", "fused") and self.text_width is None:
                raise UserError(f"{where} attends to text, but text_width is not set")
            if kind != "none" and channels % self.head_channels:
                raise UserError(f"{where}: {channels} channels do not divide by head_channels {self.head_channels}")

    @property
    def attends_to_text(self) -> bool:
        """Whether any layer reads tokens."""
        kinds = [level.attention for level in self.levels]
        if self.middle and self.middle_attention is not None:
            kinds.append(self.middle_attention)
        return "cross" in kinds or "fused" in kinds

    @property
    def total_stride(self) -> int:
        """Height and width of the pictures must divide by this."""
        return self.patch * math.prod(
            [level.stride for level in self.levels]
        )  # a generator would break a compiled graph
