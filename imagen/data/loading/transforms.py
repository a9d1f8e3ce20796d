"""Turn encoded images into square uint8 tensors: decoding, resizing, aligned crops."""

import re
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imagen import pictures
from imagen.data.shards.dataset import BadSample

_SIDE = re.compile(
    r"(?<![a-z])(?:top|bottom|upper|lower|far|mid)?(?:left|right)(?:most|wards?|hand(?:ed|er)?)?(?![a-z])",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"(?:(\d+)\.)?(?:jpg|jpeg|png|webp)")


def choose_image(extensions: Iterable[str], side: int) -> str:
    """Return the member to read for an image of `side` pixels: the smallest master (`SIZE.png`) that is large enough.

    Without one, the sample's only image (`jpg`), else its largest master. Raises BadSample if there is no image.
    """
    sizes: dict[str, float] = {}
    for extension in extensions:
        if match := _IMAGE.fullmatch(extension):
            sizes[extension] = float(match[1]) if match[1] else float("inf")
    if not sizes:
        raise BadSample("no image (jpg, jpeg, png, webp or SIZE.png)")
    return min(sizes, key=lambda name: (sizes[name] < side, abs(sizes[name] - side), name))


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


def resize(image_CHW: Tensor, side: int) -> Tensor:
    """Resize to side x side, bicubic with antialiasing, within one grey level of Pillow's."""
    if image_CHW.shape[-2:] == (side, side):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(side, side), mode="bicubic", antialias=True)[0]


def centre_square(image_CHW: Tensor) -> Tensor:
    """Return the largest centred square of an image."""
    height, width = image_CHW.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_CHW[:, top : top + side, left : left + side]


def fit(image_CHW: Tensor, side: int, max_enlargement: float = 1.0) -> Tensor:
    """Resize the centre crop to side x side. Raises BadSample if that upsamples by more than `max_enlargement`.

    The same as resizing the shorter side and cropping the centre, without resizing the pixels outside the crop.
    """
    image_CHW = centre_square(image_CHW)
    if image_CHW.shape[-1] * max_enlargement < side:
        raise BadSample(f"its shorter side has {image_CHW.shape[-1]} pixels, fewer than {side}")
    return resize(image_CHW, side)


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
    top, left = (int(p * (high_CHW.shape[-1] // scale - low_crop + 1)) for p in position)
    high_CHW = high_CHW[:, top * scale : top * scale + crop, left * scale : left * scale + crop]
    if low_CHW is not None:
        low_CHW = low_CHW[:, top : top + low_crop, left : left + low_crop]
    return high_CHW, low_CHW
