"""How a picture of one stage becomes the conditioning of the next: one function for training and sampling."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(low_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge float pictures in [-1, 1] to `size` = (height, width) by bicubic interpolation.

    Bicubic overshoots at edges, so the result is clamped back to [-1, 1]. Always float32:
    the picture is an input, not an activation, and must not depend on autocast.

    A super-resolution stage that was trained with this function must be sampled with it
    (a different filter is a distribution shift that shows as ringing or blur).
    """
    with torch.autocast(low_BChw.device.type, enabled=False):
        high_BCHW = F.interpolate(low_BChw.float(), size=size, mode="bicubic", align_corners=False)
    return high_BCHW.clamp(-1, 1)
