"""Pictures that strangers send, and pictures that go back."""

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
TAKEN = ("PNG", "JPEG", "WEBP")  # Pillow reads sixty formats; these are what browsers and cameras send
SCANS = 100  # of a JPEG; with thousands, a small file would be decoded for hours
WHITE, BLACK = 255, 0


class TooLarge(UserError):
    """Refused with 413."""


def decoded(data: bytes, what: str, most_pixels: int) -> Image.Image:
    """A picture as RGB; `what` it is, for messages. Its size is read, and refused, before its pixels are.

    Raises UserError.
    """
    return as_rgb_checked(data, what, most_pixels)[0]


def as_rgb_checked(data: bytes, what: str, most_pixels: int) -> tuple[Image.Image, Image.Image | None]:
    """The picture as RGB, by the one reader of pictures, and its transparency, "L", if it has any."""
    try:
        if data.startswith(SIGNATURE):
            data = without_text(data)
        if data.startswith(JPEG) and (scans := jpeg.scans(data)) > SCANS:
            raise UserError(f"{what} is a JPEG of {scans:,} scans; at most {SCANS} are taken")
        with Image.open(io.BytesIO(data), formats=TAKEN) as opened:
            width, height = opened.size
            if width * height > most_pixels:
                raise TooLarge(f"{what} has {width}x{height} pixels; at most {most_pixels:,} are taken")
            alpha = None
            if opened.has_transparency_data:
                alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
        return Image.fromarray(decode(data)), alpha
    except Image.DecompressionBombError:
        raise TooLarge(f"{what} has far too many pixels; at most {most_pixels:,} are taken") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise almost anything on hostile bytes
        reason = "no PNG, JPEG or WebP" if isinstance(error, Image.UnidentifiedImageError) else str(error)[:200]
        raise UserError(f"{what} is not a picture that can be read: {reason}") from None


def mask_of(data: bytes, what: str, most_pixels: int) -> Image.Image:
    """Where to draw anew, as white: the transparent part of a picture that has any (as OpenAI has it), else its white.

    Raises UserError.
    """
    rgb, alpha = as_rgb_checked(data, what, most_pixels)
    return holes(alpha) or rgb.convert("L")


def holes(alpha: Image.Image | None) -> Image.Image | None:
    """White where it is transparent; None where nothing is."""
    if alpha is None or alpha.getextrema() == (WHITE, WHITE):
        return None
    return alpha.point(lambda value: WHITE - value)


def from_base64(text: str, what: str) -> bytes:
    """The bytes of base64, or of a `data:` URL of it. Raises UserError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{what} is not base64") from None


def encoded(
    image: Image.Image, format: Format, metadata: Mapping[str, Any] | None = None, quality: int | None = None
) -> bytes:
    """A file's bytes; `metadata` goes into a PNG, as `imagen.pictures.write_png` stores it."""
    file = io.BytesIO()
    if format == "png":
        image.save(file, "PNG", pnginfo=png_info(metadata))
    elif format == "jpeg":
        image.save(file, "JPEG", quality=quality or 92)
    else:
        image.save(file, "WEBP", quality=quality or 90, method=2)
    return file.getvalue()


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
