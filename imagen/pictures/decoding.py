"""Decode an image from bytes to uint8 RGB: upright, in sRGB, with transparency composed on white.

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

# Twice Pillow's warning threshold, where Pillow itself refuses; checked on the header, before any pixel is decoded.
MAX_PIXELS = 178_956_970
# Pillow warns above half of MAX_PIXELS, and of EXIF that is broken: nothing that a picture is worse for.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ORIENTATION = 0x0112  # EXIF's tag
# XMP in all spellings that XML has; Pillow knows two. Of other formats the decoder has seen to it.
_IN_XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])""")
_TURNED_BY_XMP = ("JPEG", "MPO", "PNG", "WEBP")
_UPRIGHT = {  # EXIF orientation: what turns [H, W, C] upright
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
    """Decode an image of any supported format to uint8 RGB [H, W, 3]; of several frames, the first.

    - Orientation: as EXIF or XMP says, wherever the file has it.
    - Colours: converted to sRGB from the ICC profile inside. Without one (or with one that is broken or belongs to
      another kind of pixels) they are taken as sRGB, and CMYK is converted without a profile, as Pillow does.
    - Depth: 16 bits are reduced to 8. 32-bit integers are read as 16-bit values, floats as 0 to 1; where the values
      say otherwise the picture is refused.
    - Transparency is composed on white.

    min_side: > 0 allows a JPEG to be decoded at a fraction of its size (in the DCT domain, several times faster) as
        long as both sides stay at least that long; 0 decodes in full.
    strict: refuse a JPEG whose decoder made up pixels for damaged data, and a PNG whose checksums differ. Training
        takes them as they are.

    Raises BadPicture for bytes that are not a whole picture, or a picture above MAX_PIXELS; UnknownRange.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _decode_jpeg(data, min_side, strict)
        if strict and data.startswith(png.SIGNATURE):
            png.check(data)
        return _decode_any(data)
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:  # by the header, as in `_check_size`
        raise BadPicture(str(error)) from None
    except UnidentifiedImageError:  # whose message shows a memory address
        raise BadPicture("not a whole picture of a format that is read") from None
    except (
        Exception
    ) as error:  # decoders raise almost anything on hostile bytes: SyntaxError, RuntimeError, MemoryError
        raise BadPicture(f"not a whole picture ({type(error).__name__}: {error})") from None


def read_header(data: bytes) -> Image.Image:
    """Open a picture without decoding pixels; text chunks of a PNG are left out. Raises what Pillow raises."""
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
            may_be_turned = any(mark in data for mark in (b"eXIf", b"xif\0", b"Orientation"))
        else:
            may_be_turned = image.format not in ("JPEG", "MPO") or jpeg.may_be_turned(data)
        turned = may_be_turned and _orientation(image) in _SWAPS_SIDES
    return (width, height) if turned else (height, width)


def _decode_jpeg(data: bytes, min_side: int, strict: bool) -> np.ndarray:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if colorspace in ("YCbCr", "RGB", "Gray"):
            pixels_HWC = _decode_simple_jpeg(data, "GRAY" if colorspace == "Gray" else "RGB", min_side)
            return np.ascontiguousarray(_UPRIGHT.get(_jpeg_orientation(data), lambda x: x)(pixels_HWC))
        if strict:  # Pillow passes no warning on
            simplejpeg.decode_jpeg(data, "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB")
    except (
        ValueError
    ) as error:  # harmless oddities that libjpeg warns of, or a picture cut off: Pillow tells them apart
        if strict and jpeg.is_damage(str(error)):
            raise BadPicture(f"not a whole picture ({error})") from None
    return _decode_any(data)


def _decode_simple_jpeg(data: bytes, pixels: str, min_side: int) -> np.ndarray:
    profile = jpeg.icc_profile(data)
    if pixels == "RGB" or profile is None:
        return from_rgb(simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side), profile)
    return from_grey(simplejpeg.decode_jpeg(data, pixels, min_height=min_side, min_width=min_side)[..., 0], profile)


def _jpeg_orientation(data: bytes) -> int:
    if not jpeg.may_be_turned(data):
        return 1
    with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:  # reads the header alone
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        if (orientation := image.getexif().get(ORIENTATION)) is not None:
            return int(orientation)
    except Exception:  # EXIF that is broken says nothing, whatever Pillow raises; the pixels may be good
        return 1
    if image.format not in _TURNED_BY_XMP:
        return 1
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    match = _IN_XMP.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(match[1]) if match else 1


def _decode_any(data: bytes) -> np.ndarray:
    with read_header(data) as image:
        _check_size(*image.size)
        image.load()  # turns a TIFF
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


def _grey_levels(image: Image.Image) -> np.ndarray:
    """16-bit, 32-bit and floating-point grey as uint8 [H, W]; Pillow's convert() would clip at 255."""
    values_HW = np.asarray(image)
    low, high = values_HW.min(), values_HW.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also for NaN
            raise UnknownRange(f"floating-point pixels from {low:g} to {high:g}: 0 (black) to 1 (white) are read")
        grey_HW = np.rint(values_HW * 255).astype(np.uint8)
    else:
        # 16-bit PNG and PPM have mode I in some versions of Pillow; 32-bit integers may hold any range.
        is_wide = image.mode == "I" and image.format not in ("PNG", "PPM")
        if low < 0 or high > 65_535 or (is_wide and high < 256):
            raise UnknownRange(f"32-bit pixels from {low} to {high}: 16-bit values, 0 to 65535, are read")
        if _bits(image) == 12:
            values_HW = values_HW << 4
        grey_HW = (values_HW >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey_HW = np.where(values_HW == clear, 255, grey_HW).astype(np.uint8)
    return 255 - grey_HW if _is_white_zero(image) else grey_HW


def _bits(image: Image.Image) -> int | None:
    """Of a TIFF's sample: Pillow gives 12 as they are, unlike those of any other format (tag BitsPerSample)."""
    bits = image.tag_v2.get(258) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    return bits[0] if isinstance(bits, tuple) else bits


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF's 0 is white, which Pillow minds for 8 bits alone (tag PhotometricInterpretation)."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def _on_white(rgb_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    rgb = Image.fromarray(rgb_HWC)
    rgb.putalpha(Image.fromarray(np.ascontiguousarray(alpha_HW)))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width}x{height} is above the limit of {MAX_PIXELS} pixels")
