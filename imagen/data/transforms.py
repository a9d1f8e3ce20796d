"""Bytes to square uint8 pictures: decoding, resizing, aligned crops."""

import io
import re
from collections.abc import Iterable

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, features
from torch import Tensor

from imagen.data.shards import BadSample

# Twice Pillow's warning threshold, where Pillow itself refuses; checked on the header, before any pixel is decoded.
MAX_PIXELS = 178_956_970
# Formats that Pillow may open. Not all that it knows: for EPS, say, it would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
# Bytes between scan and end that cameras leave; a scan that is damaged leaves many.
_HARMLESS = re.compile(r"Corrupt JPEG data: 1?\d extraneous bytes before marker 0xd9")
_SIDE = re.compile(
    r"(?<![a-z])(?:top|bottom|upper|lower|far|mid)?(?:left|right)(?:most|wards?|hand(?:ed|er)?)?(?![a-z])",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"(?:(\d+)\.)?(?:jpg|jpeg|png|webp)")


def choose_image(extensions: Iterable[str], side: int) -> str:
    """The member to read for a picture of `side` pixels: the smallest master (`SIZE.png`) that is large enough.

    Without one, the sample's only picture (`jpg`), else its largest master. BadSample if there is no picture.
    """
    sizes: dict[str, float] = {}
    for extension in extensions:
        if match := _IMAGE.fullmatch(extension):
            sizes[extension] = float(match[1]) if match[1] else float("inf")
    if not sizes:
        raise BadSample("no picture (jpg, jpeg, png, webp or SIZE.png)")
    return min(sizes, key=lambda name: (sizes[name] < side, abs(sizes[name] - side), name))


def decode(data: bytes, min_side: int = 0, *, strict: bool = False) -> Tensor:
    """An encoded picture as uint8 RGB [3, H, W]; transparency is composed on white.

    `min_side` > 0 allows a JPEG to be decoded at a fraction of its size (in the DCT domain, several
    times faster) as long as both sides stay at least that long; 0 decodes in full. `strict` refuses a JPEG
    whose decoder made up pixels for damaged data; training takes it as it is.
    Raises BadSample for bytes that are not a whole picture or a picture above MAX_PIXELS.
    """
    try:
        return _to_tensor(_decode_jpeg(data, min_side, strict) if data[:2] == b"\xff\xd8" else _decode_any(data))
    except BadSample:
        raise
    except Exception as error:  # Pillow raises almost anything on hostile bytes: SyntaxError, struct.error, MemoryError
        raise BadSample(f"not a whole picture ({type(error).__name__}: {error})") from None


def _decode_jpeg(data: bytes, min_side: int, strict: bool) -> np.ndarray:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        # Pillow knows CMYK and EXIF rotation; both are rare.
        if colorspace in ("YCbCr", "RGB", "Gray") and b"Exif\0" not in data[:1024]:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side)
        if strict:  # Pillow passes no warning on
            simplejpeg.decode_jpeg(data, "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB")
    except (
        ValueError
    ) as error:  # harmless oddities that libjpeg warns of, or a picture cut off: Pillow tells them apart
        if strict and str(error).startswith("Corrupt JPEG data") and not _HARMLESS.search(str(error)):
            raise BadSample(f"not a whole picture ({error})") from None
    return _decode_any(data)


def _decode_any(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
            return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, axis=2)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample(f"{width}x{height} is above the limit of {MAX_PIXELS} pixels")


def _to_tensor(image_HWC: np.ndarray) -> Tensor:
    # A view with channels-last strides, which is the layout that uint8 interpolation is fast on.
    if not image_HWC.flags.writeable:
        image_HWC = image_HWC.copy()
    return torch.from_numpy(image_HWC).permute(2, 0, 1)


def resize(image_CHW: Tensor, side: int) -> Tensor:
    """Bicubic with antialiasing to side x side, within one grey level of Pillow's."""
    if image_CHW.shape[-2:] == (side, side):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(side, side), mode="bicubic", antialias=True)[0]


def centre_square(image_CHW: Tensor) -> Tensor:
    height, width = image_CHW.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_CHW[:, top : top + side, left : left + side]


def fit(image_CHW: Tensor, side: int, max_enlargement: float = 1.0) -> Tensor:
    """The centre square, resized to side x side; BadSample if that would enlarge by more than `max_enlargement`.

    The same as resizing the shorter side and cropping the centre, without resizing what is cropped away.
    """
    image_CHW = centre_square(image_CHW)
    if image_CHW.shape[-1] * max_enlargement < side:
        raise BadSample(f"its shorter side has {image_CHW.shape[-1]} pixels, fewer than {side}")
    return resize(image_CHW, side)


def names_a_side(caption: str) -> bool:
    """Whether an English caption says left or right ("leftmost", "right-handed", "top-left", but not "bright").

    A mirrored picture would contradict it.
    """
    return _SIDE.search(caption) is not None


def aligned_crop(
    high_CHW: Tensor, low_CHW: Tensor | None, crop: int, place: tuple[float, float]
) -> tuple[Tensor, Tensor | None]:
    """A crop of side `crop` from the high-resolution picture and the same region of the low-resolution one.

    `place` in [0, 1)^2 chooses among the possible positions. They lie on the low-resolution grid
    (high offset = scale * low offset), so the pair stays aligned to the pixel.
    """
    scale = 1 if low_CHW is None else high_CHW.shape[-1] // low_CHW.shape[-1]
    low_crop = crop // scale
    top, left = (int(p * (high_CHW.shape[-1] // scale - low_crop + 1)) for p in place)
    high_CHW = high_CHW[:, top * scale : top * scale + crop, left * scale : left * scale + crop]
    if low_CHW is not None:
        low_CHW = low_CHW[:, top : top + low_crop, left : left + low_crop]
    return high_CHW, low_CHW
