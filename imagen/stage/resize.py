"""Upsampling of a stage's images for the next one: one function for training and sampling."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Literal["bicubic", "bilinear"]


def upsample(low_BChw: Tensor, size: tuple[int, int], filter: Filter = "bicubic") -> Tensor:
    """Resize float images in [-1, 1] to `size` = (height, width).

    bicubic: overshoots at edges, so the result is clamped to [-1, 1]. bilinear: corner pixels of the small image are
    corner pixels of the large one (DeepFloyd IF), which shifts what lies between. Always float32: the image is an
    input, not an activation, and must not depend on autocast.

    A super-resolution stage that was trained with this function must be sampled with it
    (a different filter is a distribution shift that shows as ringing or blur).
    """
    with torch.autocast(low_BChw.device.type, enabled=False):
        high_BCHW = F.interpolate(low_BChw.float(), size=size, mode=filter, align_corners=filter == "bilinear")
    return high_BCHW.clamp(-1, 1)
