"""Upsample low-resolution images, in training and in sampling."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Literal["bicubic", "bilinear"]


def upsample(low_BChw: Tensor, size: tuple[int, int], filter: Filter = "bicubic") -> Tensor:
    """Resize float images in [-1, 1] to `size` = (height, width).

    bicubic: overshoots at edges, so the result is clamped to [-1, 1]. bilinear: aligns the corner pixels (DeepFloyd
    IF), which shifts the pixels between. Always in float32: the image is an input, and must not depend on autocast.

    Sample a stage with the filter that it was trained with. Another filter is a distribution shift, visible as ringing
    or blur.
    """
    with torch.autocast(low_BChw.device.type, enabled=False):
        high_BCHW = F.interpolate(low_BChw.float(), size=size, mode=filter, align_corners=filter == "bilinear")
    return high_BCHW.clamp(-1, 1)
