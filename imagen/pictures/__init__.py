"""Decode images, write PNGs with metadata, and compose contact sheets."""

from imagen.pictures.decoding import MAX_PIXELS, BadPicture, UnknownRange, decode
from imagen.pictures.files import png_info, read_metadata, read_picture, write_png
from imagen.pictures.formats import missing_format, readable_formats
from imagen.pictures.sheet import contact_sheet

__all__ = [
    "MAX_PIXELS",
    "BadPicture",
    "UnknownRange",
    "contact_sheet",
    "decode",
    "missing_format",
    "png_info",
    "read_metadata",
    "read_picture",
    "readable_formats",
    "write_png",
]
