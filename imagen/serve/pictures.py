"""Decode images from untrusted clients, and encode images for responses."""

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image, ImageOps

from imagen.errors import UserError
from imagen.pictures import decode, jpeg, png_info
from imagen.pictures.png import SIGNATURE, without_text

Format = Literal["png", "jpeg", "webp"]
JPEG = b"\xff\xd8"
ACCEPTED = ("PNG", "JPEG", "WEBP")  # of the sixty formats that Pillow reads, those that browsers and cameras send
MAX_SCANS = 100  # of a JPEG; decoding a small file with thousands of scans would take hours
WHITE, BLACK = 255, 0


class TooLarge(UserError):
    """Raised for an image above a size limit; status 413."""


def decoded(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Return an image as RGB. name: used in error messages.

    The size is checked before the pixels are decoded. Raises UserError, TooLarge above `max_pixels`.
    """
    return decode_with_alpha(data, name, max_pixels)[0]


def decode_with_alpha(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, Image.Image | None]:
    """Return an image as RGB, and its alpha channel ("L") or None. Raises like `decoded`."""
    try:
        if data.startswith(SIGNATURE):
            data = without_text(data)
        if data.startswith(JPEG) and (scans := jpeg.scans(data)) > MAX_SCANS:
            raise UserError(f"{name} is a JPEG of {scans:,} scans; the limit is {MAX_SCANS}")
        with Image.open(io.BytesIO(data), formats=ACCEPTED) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise TooLarge(f"{name} has {width}x{height} pixels; the limit is {max_pixels:,}")
            alpha = None
            if opened.has_transparency_data:
                alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
        return Image.fromarray(decode(data)), alpha
    except Image.DecompressionBombError:
        raise TooLarge(f"{name} has too many pixels; the limit is {max_pixels:,}") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise almost any exception for malicious bytes
        reason = (
            "it is not a PNG, JPEG or WebP file"
            if isinstance(error, Image.UnidentifiedImageError)
            else str(error)[:200]
        )
        raise UserError(f"{name} cannot be read: {reason}") from None


def decode_mask(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Return a mask that is white where the image is regenerated.

    As in OpenAI's API, that is the transparent part; in an image without one it is the white part. Raises UserError.
    """
    rgb, alpha = decode_with_alpha(data, name, max_pixels)
    return transparency_mask(alpha) or rgb.convert("L")


def transparency_mask(alpha: Image.Image | None) -> Image.Image | None:
    """Return a mask that is white where `alpha` is transparent; None if nothing is."""
    if alpha is None or alpha.getextrema() == (WHITE, WHITE):
        return None
    return alpha.point(lambda value: WHITE - value)


def from_base64(text: str, name: str) -> bytes:
    """Decode base64, or a `data:` URL in base64. Raises UserError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name} is not valid base64") from None


def encoded(
    image: Image.Image, format: Format, metadata: Mapping[str, Any] | None = None, quality: int | None = None
) -> bytes:
    """Encode an image. metadata: stored in a PNG in the format of `imagen.pictures.write_png`."""
    file = io.BytesIO()
    if format == "png":
        image.save(file, "PNG", pnginfo=png_info(metadata))
    elif format == "jpeg":
        image.save(file, "JPEG", quality=quality or 92)
    else:
        image.save(file, "WEBP", quality=quality or 90, method=2)
    return file.getvalue()


def to_base64(data: bytes) -> str:
    """Encode bytes as base64."""
    return base64.b64encode(data).decode("ascii")
