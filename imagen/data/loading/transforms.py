"""Turn encoded images into uint8 tensors of one size: decoding, resizing, aligned crops."""

import math
import re
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imagen import pictures
from imagen.data.loading.buckets import Size
from imagen.data.shards.images import BadSample

_SIDE = re.compile(
    r"(?<![a-z])(?:top|bottom|upper|lower|far|mid)?(?:left|right)(?:most|wards?|hand(?:ed|er)?)?(?![a-z])",
    re.IGNORECASE,
)


def decode(data: bytes, min_side: int = 0, *, channels: int = 3) -> Tensor:
    """Decode an image to uint8 [channels, H, W]: RGB, or grey (ITU-R BT.601 luma, as Pillow's "L") for 1 channel.

    Decodes with `imagen.pictures.decode`. Raises BadSample for bytes that are not a complete image.
    """
    try:
        image_HWC = pictures.decode(data, min_side)
    except pictures.BadPicture as error:
        raise BadSample(str(error)) from None
    if channels == 1:
        image_HWC = np.asarray(Image.fromarray(image_HWC).convert("L"))[..., None]
    # A view with channels-last strides, the layout for which uint8 interpolation is fast.
    return torch.from_numpy(image_HWC if image_HWC.flags.writeable else image_HWC.copy()).permute(2, 0, 1)


def resize(image_CHW: Tensor, size: Size) -> Tensor:
    """Resize to `size` = (height, width), bicubic with antialiasing, within one grey level of Pillow's."""
    if image_CHW.shape[-2:] == size:
        return image_CHW
    return F.interpolate(image_CHW[None], size=size, mode="bicubic", antialias=True)[0]


def centre_crop(image_CHW: Tensor, aspect: Size) -> Tensor:
    """Return the largest centred crop with the proportions of `aspect` = (height, width), rounded to pixels."""
    height, width = image_CHW.shape[-2:]
    high, wide = aspect
    if height * wide > width * high:
        height = max(1, round(width * high / wide))
    else:
        width = max(1, round(height * wide / high))
    top, left = (image_CHW.shape[-2] - height) // 2, (image_CHW.shape[-1] - width) // 2
    return image_CHW[:, top : top + height, left : left + width]


def fit(image_CHW: Tensor, size: Size, max_enlargement: float = 1.0) -> Tensor:
    """Resize the centre crop to `size`. Raises BadSample if that upsamples by more than `max_enlargement`.

    The same as resizing the image to cover `size` and cropping the centre, without resizing what is outside.
    """
    height, width = image_CHW.shape[-2:]
    if height * max_enlargement < size[0] or width * max_enlargement < size[1]:
        if size[0] == size[1]:
            raise BadSample(f"its shorter side has {min(height, width)} pixels, fewer than {size[0]}")
        raise BadSample(f"it has {width}x{height} pixels, fewer than {size[1]}x{size[0]}")
    return resize(centre_crop(image_CHW, size), size)


def shorter_side(size: Size, image_size: Size | None) -> int:
    """Return the shorter side of an image that just covers `size`, with the aspect ratio of `image_size`.

    None, or a size of 0: the aspect ratio is unknown, and any image with this shorter side covers `size`.
    """
    if size[0] == size[1]:
        return size[0]
    if image_size is None or min(image_size) < 1:
        return max(size)
    scale = max(Fraction(size[0], int(image_size[0])), Fraction(size[1], int(image_size[1])))
    return math.ceil(scale * int(min(image_size)))


def mentions_left_or_right(caption: str) -> bool:
    """Return whether an English caption mentions left or right ("leftmost", "top-left", but not "bright").

    A mirrored image would contradict such a caption.
    """
    return _SIDE.search(caption) is not None


def aligned_crop(
    high_CHW: Tensor, low_CHW: Tensor | None, crop: int, position: tuple[float, float]
) -> tuple[Tensor, Tensor | None]:
    """Return a crop of side `crop` of the high-resolution image and the same region of the low-resolution one.

    `position` in [0, 1)^2 (from the top, from the left) selects one of the possible offsets. Offsets lie on the
    low-resolution grid (high offset = scale * low offset), so the pair is aligned to the pixel.
    """
    scale = 1 if low_CHW is None else high_CHW.shape[-1] // low_CHW.shape[-1]
    low_crop = crop // scale
    sides = (side // scale for side in high_CHW.shape[-2:])
    top, left = (int(p * (side - low_crop + 1)) for p, side in zip(position, sides, strict=True))
    high_CHW = high_CHW[:, top * scale : top * scale + crop, left * scale : left * scale + crop]
    if low_CHW is not None:
        low_CHW = low_CHW[:, top : top + low_crop, left : left + low_crop]
    return high_CHW, low_CHW
