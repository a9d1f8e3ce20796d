"""Smaller copies of an image that are stored in its place: masters, one for each size that a stage reads.

A camera's image of 12 megapixels takes 70 ms to decode, whatever the stage's resolution; a master of 256 pixels 1 ms.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from imagen.errors import UserError, check_number
from imagen.limits import SIDE

QUALITY = 95  # of JPEG, without chroma subsampling


def encode_masters(pixels_HWC: np.ndarray, sizes: Sequence[int]) -> dict[str, bytes]:
    """Return a JPEG for each size that is not above the image's shorter side, by extension: `256.jpg`.

    pixels_HWC: uint8, RGB. sizes: of the shorter side, in pixels; the aspect ratio is preserved. Reduces with Pillow's
    bicubic filter, with antialiasing.
    """
    height, width = pixels_HWC.shape[:2]
    image, masters = Image.fromarray(pixels_HWC), {}
    for size in sizes:
        scale = size / min(height, width)
        if scale > 1:
            continue
        target = max(size, round(width * scale)), max(size, round(height * scale))
        file = io.BytesIO()
        image.resize(target, Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY, subsampling=0)
        masters[f"{size}.jpg"] = file.getvalue()
    return masters


def check_sizes(sizes: Sequence[int], in_place: bool) -> None:
    """Raise UserError unless masters of these sizes can be written."""
    for size in sizes:
        check_number("--sizes", size, least=8, most=SIDE)
    if len(set(sizes)) != len(sizes):
        raise UserError(f"--sizes names a size twice: {', '.join(map(str, sizes))}")
    if sizes and in_place:
        raise UserError("--sizes writes smaller images, and shards are used in place: give --copy --out SHARDS")
