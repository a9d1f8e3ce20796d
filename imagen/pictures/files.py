"""Read image files of any supported format, and write PNGs with metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from imagen.distribution import missing as missing_package
from imagen.errors import UserError
from imagen.files import open_given, parse_json, replacing
from imagen.pictures.decoding import BadPicture, decode
from imagen.pictures.formats import missing_format, readable_formats

KEY = "imagen"  # keyword of the PNG text chunk
MAX_BYTES = 2**30  # maximum size of a file; MAX_PIXELS take less in any common format


def write_png(path: str | Path, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a PNG, atomically, with `metadata` as JSON in an iTXt chunk (UTF-8) named "imagen".

    Raises UserError if the file cannot be written.
    """
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_info(metadata))


def png_info(metadata: Mapping[str, Any] | None) -> PngInfo:
    """Return the metadata in the form that Pillow's `save` takes as `pnginfo`."""
    info = PngInfo()
    if metadata is not None:
        info.add_itxt(KEY, json.dumps(metadata, ensure_ascii=False, allow_nan=False), zip=False)
    return info


def read_picture(path: str | Path) -> Image.Image:
    """Read an image of any supported format as RGB with `decode`: upright, in sRGB, transparent pixels on white.

    Raises UserError naming the file if it is missing, broken or in an unsupported format.
    """
    with open_given(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes, which is the limit for an image")
    if kind := missing_format(data):
        raise missing_package(f"{path} is {kind}, which needs a decoder", "formats")
    try:
        return Image.fromarray(decode(data))
    except BadPicture as error:
        raise UserError(f"{path} is not a readable image: {error}") from None


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """Return the metadata that `write_png` stored, or None for an image without it.

    Raises UserError naming the file if it is missing or not an image.
    """
    try:
        with open_given(path) as file, Image.open(file, formats=readable_formats()) as image:
            image.load()  # text chunks may follow the pixels
            text = image.info.get(KEY)
        value = None if text is None else parse_json(text)
    except UserError:
        raise
    except UnidentifiedImageError:  # its message contains a memory address or a file object
        raise UserError(f"{path} is not an image in a supported format") from None
    except Exception as error:  # decoders raise almost anything on hostile bytes
        raise UserError(f"{path} is not a readable image: {error}") from None
    return value if isinstance(value, dict) else None
