"""Decode an image from bytes to uint8 RGB: upright, in sRGB, with transparent pixels composited on white.

Building, training, evaluation and sampling all use this decoder.
"""

import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagen.pictures import jpeg, jpeg2000, png
from imagen.pictures.colour import from_cmyk, from_grey, from_lab, from_rgb
from imagen.pictures.formats import readable_formats

# Twice Pillow's warning threshold, which is where Pillow raises an error. Checked on the header, before decoding.
MAX_PIXELS = 178_956_970
# Pillow warns above half of MAX_PIXELS and about broken EXIF data. Neither affects the pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF tag
# Orientation in XMP, in all spellings that XML allows; Pillow supports two of them.
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_XMP_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")  # in other formats, the decoder applies the orientation
_UPRIGHT = {  # EXIF orientation: function that makes [H, W, C] upright
    2: lambda x_HWC: x_HWC[:, ::-1],
    3: lambda x_HWC: x_HWC[::-1, ::-1],
    4: lambda x_HWC: x_HWC[::-1],
    5: lambda x_HWC: x_HWC.swapaxes(0, 1),
    6: lambda x_HWC: x_HWC[::-1].swapaxes(0, 1),
    7: lambda x_HWC: x_HWC[::-1, ::-1].swapaxes(0, 1),
    8: lambda x_HWC: x_HWC[:, ::-1].swapaxes(0, 1),
}
_SWAPS_SIDES = (5, 6, 7, 8)


class BadPicture(Exception):
    """The bytes are not a complete, supported image; the message gives the reason."""


class UnknownRange(BadPicture):
    """The pixels are integers or floats with an unknown white level."""


def decode(data: bytes, min_side: int = 0, *, strict: bool = False) -> np.ndarray:
    """Decode an image of any supported format to uint8 RGB [H, W, 3]. Of several frames, the first is decoded.

    - Orientation: applied from EXIF or XMP, wherever it is in the file.
    - Colours: converted to sRGB with the embedded ICC profile. If it is missing, broken or for another colour space,
      pixels are assumed to be sRGB, and CMYK is converted like Pillow does without a profile.
    - Depth: 16 bits are reduced to 8. 32-bit integers must be 16-bit values, and floats must be in [0, 1].
    - Transparency: composited on white.

    min_side: if > 0, a JPEG may be decoded at a fraction of its size (in the DCT domain, several times faster) as long
        as both sides have at least this many pixels; 0 decodes at full size.
    strict: reject a damaged JPEG, for which the decoder invents pixels, and a PNG with a wrong checksum. Training
        accepts both.

    Raises BadPicture if the bytes are not a complete image or if it has more than MAX_PIXELS, and its subclass
    UnknownRange if the range of the pixel values is not supported.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, min_side, strict)
        if strict and data.startswith(png.SIGNATURE):
            png.check(data)
        return _decode_any(data)
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:  # raised for the header, like `_check_size`
        raise BadPicture(str(error)) from None
    except UnidentifiedImageError:  # its message contains a memory address
        raise BadPicture("not a complete image in a supported format") from None
    except Exception as error:  # hostile bytes cause almost any exception: SyntaxError, RuntimeError, MemoryError
        raise BadPicture(f"not a complete image ({type(error).__name__}: {error})") from None


def read_header(data: bytes) -> Image.Image:
    """Open an image without decoding its pixels or the text chunks of a PNG. Raises Pillow's exceptions."""
    if data.startswith(png.SIGNATURE):
        data = png.without_text(data)
    return Image.open(io.BytesIO(data), formats=readable_formats())


def read_size(data: bytes) -> tuple[int, int]:
    """Return height and width of the upright image, from the header at the beginning of `data`. Raises as Pillow does.

    An orientation behind the pixels of a PNG is not found.
    """
    with read_header(data) as image:
        width, height = image.size
        if data.startswith(png.SIGNATURE):  # Pillow would decode the pixels to find that there is no orientation
            may_have_orientation = any(mark in data for mark in (b"eXIf", b"xif\0", b"Orientation"))
        else:
            may_have_orientation = image.format not in ("JPEG", "MPO") or jpeg.may_have_orientation(data)
        turned = may_have_orientation and _orientation(image) in _SWAPS_SIDES
    return (width, height) if turned else (height, width)


def _decode_jpeg(data: bytes, min_side: int, strict: bool) -> np.ndarray:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if colorspace in ("YCbCr", "RGB", "Gray"):
            pixels_HWC = _decode_simple_jpeg(data, "GRAY" if colorspace == "Gray" else "RGB", min_side)
            return np.ascontiguousarray(_UPRIGHT.get(_jpeg_orientation(data), lambda x: x)(pixels_HWC))
        if strict:  # Pillow does not report libjpeg's warnings, so decode once with simplejpeg
            simplejpeg.decode_jpeg(data, "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB")
    except ValueError as error:  # a harmless warning of libjpeg, or a truncated file; Pillow distinguishes the two
        if strict and jpeg.is_damage(str(error)):
            raise BadPicture(f"not a complete image ({error})") from None
    return _decode_any(data)


def _decode_simple_jpeg(data: bytes, pixels: str, min_side: int) -> np.ndarray:
    profile = jpeg.icc_profile(data)
    if pixels == "RGB" or profile is None:
        return from_rgb(simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side), profile)
    return from_grey(simplejpeg.decode_jpeg(data, pixels, min_height=min_side, min_width=min_side)[..., 0], profile)


def _jpeg_orientation(data: bytes) -> int:
    if not jpeg.may_have_orientation(data):
        return 1
    with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:  # reads only the header
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        if (orientation := image.getexif().get(ORIENTATION)) is not None:
            return int(orientation)
    except Exception:  # Pillow raises many types for broken EXIF data; ignore it, because the pixels may be intact
        return 1
    if image.format not in _XMP_FORMATS:
        return 1
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(match[1]) if match else 1


def _decode_any(data: bytes) -> np.ndarray:
    with read_header(data) as image:
        _check_size(*image.size)
        image.load()  # applies the orientation of a TIFF
        if image.format == "PNG":
            _scale_colour_key(image, png.bit_depth(data))
        profile = jpeg2000.icc_profile(data) if image.format == "JPEG2000" else image.info.get("icc_profile")
        pixels_HWC = _rgb(image, profile if isinstance(profile, bytes) else None)
        return np.ascontiguousarray(_UPRIGHT.get(_orientation(image), lambda x: x)(pixels_HWC))


def _rgb(image: Image.Image, profile: bytes | None) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return from_grey(_grey_levels(image), profile)
    if image.mode == "LAB":
        return from_lab(image)
    if image.has_transparency_data:
        rgba_HWC = np.asarray(image.convert("RGBA"))
        colour = np.ascontiguousarray(rgba_HWC[..., :3])
        is_grey = image.mode in ("1", "L", "LA")
        return _on_white(from_grey(colour[..., 0], profile) if is_grey else from_rgb(colour, profile), rgba_HWC[..., 3])
    if image.mode == "CMYK":
        return from_cmyk(image, profile)
    if image.mode in ("1", "L"):
        return from_grey(np.asarray(image.convert("L")), profile)
    return from_rgb(np.asarray(image.convert("RGB")), profile)


def _scale_colour_key(image: Image.Image, bits: int) -> None:
    """Scale the transparent colour of a PNG (tRNS) to 8 bits, as Pillow scales the pixels but not the colour."""
    clear = image.info.get("transparency")
    if isinstance(clear, int) and bits in (2, 4):
        image.info["transparency"] = clear * 255 // (2**bits - 1)
    elif isinstance(clear, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Convert 16-bit, 32-bit and floating-point grey to uint8 [H, W]. Pillow's convert() would clip at 255."""
    values_HW = np.asarray(image)
    low, high = values_HW.min(), values_HW.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also for NaN
            raise UnknownRange(f"floating-point pixels from {low:g} to {high:g}: supported are 0 (black) to 1 (white)")
        grey_HW = np.rint(values_HW * 255).astype(np.uint8)
    else:
        # 16-bit PNG and PPM have mode I in some versions of Pillow; 32-bit integers may have any range.
        is_wide = image.mode == "I" and image.format not in ("PNG", "PPM")
        if low < 0 or high > 65_535 or (is_wide and high < 256):
            raise UnknownRange(f"32-bit pixels from {low} to {high}: supported are 16-bit values, 0 to 65535")
        if _bits(image) == 12:
            values_HW = values_HW << 4
        grey_HW = (values_HW >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey_HW = np.where(values_HW == clear, 255, grey_HW).astype(np.uint8)
    return 255 - grey_HW if _is_white_zero(image) else grey_HW


def _bits(image: Image.Image) -> int | None:
    """Return the bits per sample of a TIFF (tag BitsPerSample), because Pillow does not scale 12-bit samples to 16."""
    bits = image.tag_v2.get(258) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    return bits[0] if isinstance(bits, tuple) else bits


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether 0 is white in a TIFF (tag PhotometricInterpretation). Pillow handles this only for 8 bits."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def _on_white(rgb_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    rgb = Image.fromarray(rgb_HWC)
    rgb.putalpha(Image.fromarray(np.ascontiguousarray(alpha_HW)))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width}x{height} pixels exceed the limit of {MAX_PIXELS}")
