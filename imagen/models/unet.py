"""The U-Net, built from a list of levels.

One class covers the paper's base model (App. F.1, after guided diffusion), its Efficient U-Net (App. B.1, F.2, F.3),
the three stages of DeepFloyd IF and the small models of the demo. They differ only in their `UNetConfig`.

Shape legend: see `imagen.models.layers`.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.models.blocks import Block, UNetLevel, attends_after, downsample, embedding_projection, upsample
from imagen.models.config import UNetConfig
from imagen.models.layers import (
    ACTIVATIONS,
    Attention,
    Context,
    NoiseEmbedding,
    TextPooling,
    apply_norm,
    group_norm,
    zero_init,
)

LOW_PRECISION = (torch.bfloat16, torch.float16)


class TextCache(NamedTuple):
    """The values that a U-Net computes from text alone: the pooled text, and cross-attention keys and values."""

    pooled_BE: Tensor
    context: Mapping[nn.Module, tuple[Tensor, Tensor]]  # keys and values of each attention layer, [B, L, C]


class UNet(nn.Module):
    """Predict eps, x0 or v, as trained, from a noised image."""

    down: Iterable[UNetLevel]  # from the highest resolution to the lowest
    middle: Iterable[Block]
    up: Iterable[UNetLevel]  # from the lowest resolution to the highest

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
        self.text_projection = None  # without attention to text, only the pooled text is used
        if config.text_width and config.attends_to_text:
            self.text_projection = nn.Linear(config.text_width, config.context_width)
        self.conv_in = nn.Conv2d(per_pixel * (1 + config.low_res) + 2 * config.coordinates, stem, 3, padding=1)

        entries = 1 if config.family == "guided" else 0  # guided: the input of each level is a skip connection, too
        skips: list[int] = []  # channels of the skip connections
        channels = stem
        down = []
        for level in levels:
            resample, channels = downsample(config, level, channels)
            skips += [channels] * entries
            combine = embedding_projection(config, channels)
            blocks = []
            for index in range(level.blocks):
                blocks.append(Block(config, level, channels, attends_after(level, index, level.blocks)))
                channels = level.channels
                skips.append(channels)
            down.append(UNetLevel(blocks, resample, combine))

        bottom = replace(levels[-1], attention=config.middle_attention or levels[-1].attention)
        middle = [Block(config, bottom, channels, attend) for attend in (True, False)] if config.middle else []

        up = []
        for index in reversed(range(len(levels))):
            level, count = levels[index], levels[index].blocks + entries
            combine = embedding_projection(config, channels)
            blocks = []
            for number in range(count):
                joined = channels + skips.pop() if config.skip == "concat" else skips.pop()
                blocks.append(Block(config, level, joined, attends_after(level, number, count)))
                channels = level.channels
            resample, channels = upsample(config, level, channels, levels[index - 1].channels if index else stem)
            up.append(UNetLevel(blocks, resample, combine))

        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)  # type: ignore[assignment]
        self.norm_out = group_norm(channels, config.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(channels, per_pixel * (1 + config.learned_variance), 3, padding=1))

    def cache_text(self, text_BLD: Tensor, mask_BL: Tensor | None = None) -> TextCache:
        """Compute what `forward` derives from `text` and `text_mask` alone, once for all steps of a sampler.

        Only for sampling. In training each layer computes its own keys and values, because its sharded parameters are
        gathered only while it runs.
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
        """Return the prediction [B, 3, H, W] for noised images x [B, 3, H, W]; [B, 6, H, W] with learned variance.

        noise_B: noise labels of x in [0, 1000] (`diffusion.schedule.build_label`).
        text: token embeddings [B, L, D], or their `cache_text`. text_mask: [B, L], True at tokens (None: everywhere).
        low_res: low-resolution images, upsampled to H x W and noised. low_res_noise: their noise labels [B].

        Raises UserError unless H and W are multiples of `config.total_stride`, ValueError if a condition is missing.
        """
        height, width = x_BCHW.shape[-2:]
        if height % self.config.total_stride or width % self.config.total_stride:
            raise UserError(
                f"this U-Net takes sides that are divisible by {self.config.total_stride}, not {height}x{width}"
            )

        dtype = self.norm_out.weight.dtype
        if dtype in LOW_PRECISION:  # the whole network is, and runs without autocast, which would cast the inputs
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
                raise ValueError("this U-Net is conditioned on a low-resolution image, but got none")
            embedding_BE = embedding_BE + self.low_res_embedding(low_res_noise)
            x_BCHW = torch.cat([x_BCHW, low_res], dim=1)
        embedding_BE = self.act(embedding_BE)
        conditions = (embedding_BE, context, text_mask)

        patch = self.config.patch
        h_BCHW = x_BCHW if patch == 1 else F.pixel_unshuffle(x_BCHW, patch)
        if self.config.coordinates:
            h_BCHW = torch.cat([h_BCHW, _coordinates(h_BCHW)], dim=1)
        h_BCHW = self.conv_in(h_BCHW)
        skips: list[Tensor] = []
        for level in self.down:
            h_BCHW = level.apply_resampling(h_BCHW, embedding_BE)
            if self.config.family == "guided":
                skips.append(h_BCHW)
            h_BCHW = level.add_embedding(h_BCHW, embedding_BE)
            for block in level.blocks:
                h_BCHW = block(h_BCHW, *conditions)
                skips.append(h_BCHW)
        for block in self.middle:
            h_BCHW = block(h_BCHW, *conditions)
        for level in self.up:
            h_BCHW = level.add_embedding(h_BCHW, embedding_BE)
            for block in level.blocks:
                h_BCHW = block(self._join(h_BCHW, skips.pop()), *conditions)
            h_BCHW = level.apply_resampling(h_BCHW, embedding_BE)
        out_BCHW = self.conv_out(apply_norm(self.norm_out, h_BCHW, self.config.activation))
        return out_BCHW if patch == 1 else F.pixel_shuffle(out_BCHW, patch)

    def _join(self, h_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        if self.config.family == "efficient":
            skip_BCHW = skip_BCHW * 2**-0.5  # App. B.1: faster convergence
        if self.config.skip == "add":
            return h_BCHW + skip_BCHW
        return torch.cat([h_BCHW, skip_BCHW], dim=1)


def cast_copy(unet: UNet, dtype: torch.dtype, device: torch.device | None = None) -> UNet:
    """Return a copy of `unet` with weights in `dtype`, in the same memory format. device: None for the same one."""
    # Parameters are copied in the new format at once: a copy in the old one would not always fit.
    parameters = {
        id(parameter): nn.Parameter(parameter.detach().to(device, dtype, copy=True), parameter.requires_grad)
        for parameter in unet.parameters()
    }
    return copy.deepcopy(unet, parameters)


def _coordinates(like_BCHW: Tensor) -> Tensor:
    """Return y and x of each pixel, in [-1, 1], as two channels [B, 2, H, W]."""
    B, _, H, W = like_BCHW.shape
    y_H, x_W = (torch.linspace(-1, 1, side, dtype=like_BCHW.dtype, device=like_BCHW.device) for side in (H, W))
    return torch.stack(torch.meshgrid(y_H, x_W, indexing="ij")).expand(B, -1, -1, -1)
