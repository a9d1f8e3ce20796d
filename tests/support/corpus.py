"""Make pairs with known defects among them. `python tests/support/corpus.py DIR [N]` writes them as a folder of files.

Every kind of defect is planted several times, and so is every unusual but valid kind of image.
"""

import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imagen.data.sources.base import Part, Record

REPEATS = 3  # times that each defect is planted


@dataclass(frozen=True)
class Pair:
    """An image file and its caption file."""

    name: str  # of the image file
    image: bytes | None  # None: a link to a missing file
    caption: bytes | None
    json: bytes | None = None  # contents of the .json file, if the caption is not in a .txt file
    defect: str | None = None

    @property
    def reason(self) -> str | None:
        return None if self.defect is None else DEFECTS[self.defect][0]


def picture(i: int, height: int = 72, width: int = 80) -> Image.Image:
    """Return an image of coloured blocks that differs for every `i`."""
    rng = np.random.default_rng(i)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    blocks[0, 0] = i % 251, i // 251 % 251, 7
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rotated(i: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(i), "JPEG", exif=exif)


def grey16(i: int) -> Image.Image:
    levels = np.asarray(picture(i).convert("L")).astype(np.uint16) * 257
    return Image.fromarray(levels)


def with_alpha(i: int, mode: str = "RGBA") -> Image.Image:
    image = picture(i).convert(mode)
    image.putalpha(picture(i + 1).convert("L"))
    return image


# Valid kinds of images: (file extension, encoder).
GOOD: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "jpeg": ("jpg", lambda i: encoded(picture(i), "JPEG")),
    "jpeg, progressive": ("jpeg", lambda i: encoded(picture(i), "JPEG", progressive=True)),
    "jpeg, grey": ("jpg", lambda i: encoded(picture(i).convert("L"), "JPEG")),
    "jpeg, CMYK": ("jpg", lambda i: encoded(picture(i).convert("CMYK"), "JPEG")),
    "jpeg, turned by EXIF": ("jpg", rotated),
    "jpeg with bytes behind its end": ("jpg", lambda i: encoded(picture(i), "JPEG") + b"padding"),
    "jpeg with a preview (MPO)": (
        "jpg",
        lambda i: encoded(picture(i), "MPO", save_all=True, append_images=[picture(i, 16, 16)]),
    ),
    "png": ("png", lambda i: encoded(picture(i), "PNG")),
    "png named jpg": ("jpg", lambda i: encoded(picture(i), "PNG")),
    "png, transparent": ("png", lambda i: encoded(with_alpha(i), "PNG")),
    "png, grey and transparent": ("png", lambda i: encoded(with_alpha(i, "LA"), "PNG")),
    "png, palette": ("png", lambda i: encoded(picture(i).quantize(64), "PNG")),
    "png, palette and transparent": ("png", lambda i: encoded(picture(i).quantize(64), "PNG", transparency=3)),
    "png, 16 bit": ("png", lambda i: encoded(grey16(i), "PNG")),
    "png, 1 bit": ("png", lambda i: encoded(picture(i).convert("1"), "PNG")),
    "webp": ("webp", lambda i: encoded(picture(i), "WEBP")),
    "webp, transparent": ("webp", lambda i: encoded(with_alpha(i), "WEBP", lossless=True)),
    "gif of one frame": ("gif", lambda i: encoded(picture(i).quantize(64), "GIF")),
    "bmp": ("bmp", lambda i: encoded(picture(i), "BMP")),
    "tiff, CMYK": ("tiff", lambda i: encoded(picture(i).convert("CMYK"), "TIFF")),
    "tiff, 16 bit": ("tif", lambda i: encoded(grey16(i), "TIFF")),
    "tiff, floating-point": ("tiff", lambda i: floating(i)),
}
CAPTIONS: list[Callable[[int], bytes]] = [
    lambda i: f"picture {i}".encode(),
    lambda i: f"\ufeffpicture {i} behind a byte order mark".encode(),
    lambda i: f"  Größe {i}, 絵, \U0001f419\n".encode(),
    lambda i: f"picture {i}\non two lines,\twith a tab".encode(),
    lambda i: (f"{i} " + "w" * 1999)[:2000].encode(),
]


def frames(i: int, format: str, **options: object) -> bytes:
    return encoded(picture(i), format, save_all=True, append_images=[picture(i + 1)], duration=100, **options)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def damaged_jpeg(i: int) -> bytes:
    """Return a JPEG with zeros in the last third of its scan."""
    data = encoded(picture(i), "JPEG")
    middle = len(data) * 2 // 3
    return data[:middle] + bytes(len(data) - middle - 2) + data[-2:]


def damaged_png(i: int) -> bytes:
    data = bytearray(encoded(picture(i), "PNG"))
    data[-16] ^= 1  # the last byte of the checksum of the pixels, which can still be decoded
    return bytes(data)


def bomb(_: int) -> bytes:
    """Return a PNG of 70 bytes with a valid header for 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def floating(i: int, white: float = 1) -> bytes:
    """Return a grey TIFF of floats in [0, white]."""
    return encoded(Image.fromarray(np.asarray(picture(i).convert("L"), np.float32) / 255 * white), "TIFF")


# Defect: (reason, file extension, image, caption). None: a good image or caption, or one that `pair` sets.
DEFECTS: dict[str, tuple[str, str, Callable[[int], bytes] | None, Callable[[int], bytes] | None]] = {
    "jpeg cut off": ("truncated picture", "jpg", lambda i: cut(encoded(picture(i), "JPEG")), None),
    "jpeg cut off in its header": ("truncated picture", "jpg", lambda i: encoded(picture(i), "JPEG")[:100], None),
    "png cut off": ("truncated picture", "png", lambda i: cut(encoded(picture(i), "PNG")), None),
    "webp cut off": ("truncated picture", "webp", lambda i: cut(encoded(picture(i), "WEBP")), None),
    "gif cut off": ("truncated picture", "gif", lambda i: cut(encoded(picture(i).quantize(64), "GIF")), None),
    "jpeg with a damaged scan": ("damaged picture", "jpg", damaged_jpeg, None),
    "png with a wrong checksum": ("damaged picture", "png", damaged_png, None),
    "web page in place of a picture": ("not a picture", "jpg", lambda i: b"<html>404 Not Found</html>", None),
    "empty file": ("missing image", "jpg", lambda i: b"", None),
    "decompression bomb": ("too many pixels", "png", bomb, None),
    "thumbnail": ("too small", "jpg", lambda i: encoded(picture(i, 63, 200), "JPEG"), None),
    "banner": ("extreme aspect", "png", lambda i: encoded(picture(i, 64, 264), "PNG"), None),
    "animated gif": ("animation", "gif", lambda i: frames(i, "GIF"), None),
    "animated png": ("animation", "png", lambda i: frames(i, "PNG"), None),
    "animated webp": ("animation", "webp", lambda i: frames(i, "WEBP"), None),
    "floating-point tiff beyond 1": ("pixel type", "tiff", lambda i: floating(i, 1000), None),
    "no caption": ("missing caption", "jpg", None, None),
    "white space for a caption": ("empty caption", "jpg", None, lambda i: b" \n\t"),
    "caption in Latin-1": ("not UTF-8", "jpg", None, lambda i: f"Größe {i}".encode("latin-1")),
    "caption that lost its letters": ("not UTF-8", "jpg", None, lambda i: f"Gr\ufffd\ufffde {i}".encode()),
    "caption with a zero byte": ("control characters", "jpg", None, lambda i: f"picture\0{i}".encode()),
    "caption of a whole page": ("long caption", "jpg", None, lambda i: b"word " * 401),
    "the same file again": ("duplicate", "png", None, None),
    "the same pixels in another format": ("duplicate", "bmp", None, None),
    "link to a missing file": ("missing file", "jpg", None, None),
}
# Defects that `pair` does not plant, since a small corpus would have more defects than pairs.
FURTHER_DEFECTS = {
    "bmp cut off": ("truncated picture", "bmp", lambda i: cut(encoded(picture(i), "BMP")), None),
    "tiff cut off": ("truncated picture", "tiff", lambda i: cut(encoded(picture(i), "TIFF")), None),
    "png without pixels": ("truncated picture", "png", lambda i: encoded(picture(i), "PNG")[:33], None),
    "drawing in place of a picture": (
        "not a picture",
        "png",
        lambda i: b"<svg width='64'/>",
        None,
    ),
    "zeros in place of a picture": ("not a picture", "webp", lambda i: bytes(5000), None),
    "caption in UTF-16": ("not UTF-8", "jpg", None, lambda i: f"picture {i}".encode("utf-16")),
}


def pair(i: int, n: int) -> Pair:
    """Return pair `i` of `n`. Defects are spread over the corpus; duplicates copy the PNG of the preceding pair."""
    every = n // (REPEATS * len(DEFECTS) + 1)
    number, rest = divmod(i, every)
    planted = list(DEFECTS)[(number - 1) % len(DEFECTS)] if rest == 0 and 0 < number <= REPEATS * len(DEFECTS) else None
    if planted is None:
        kind = "png" if (i + 1) % every == 0 else list(GOOD)[i % len(GOOD)]
        ending, make = GOOD[kind]
        caption = CAPTIONS[i % len(CAPTIONS)](i)
        if i % 7 == 0:
            return Pair(
                f"{i:06d}.{ending}", make(i), None, json.dumps({"caption": caption.decode("utf-8-sig")}).encode()
            )
        return Pair(f"{i:06d}.{ending}", make(i), caption)
    _, ending, bad_picture, bad_caption = DEFECTS[planted]
    image: bytes | None = (bad_picture or GOOD["jpeg"][1])(i)
    caption = None if planted == "no caption" else (bad_caption or CAPTIONS[0])(i)
    if planted == "link to a missing file":
        image = None
    elif planted == "the same file again":
        image = pair(i - 1, n).image
    elif planted == "the same pixels in another format":
        image = encoded(picture(i - 1), "BMP")
    return Pair(f"{i:06d}.{ending}", image, caption, defect=planted)


def write(folder: Path, n: int = 2000) -> None:
    """Write the corpus as a folder that `imagen data build FOLDER` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        made = pair(i, n)
        path = folder / made.name
        if made.image is None:
            path.symlink_to("nowhere.jpg")
        else:
            path.write_bytes(made.image)
        if made.caption is not None:
            path.with_suffix(".txt").write_bytes(made.caption)
        if made.json is not None:
            path.with_suffix(".json").write_bytes(made.json)


class Corpus:
    """The corpus as a source in memory."""

    in_place = False

    def __init__(self, n: int = 2000, per_part: int = 250):
        self.n, self.per_part = n, per_part

    def parts(self) -> list[Part]:
        starts = range(0, self.n, self.per_part)
        return [{"first": start, "last": min(start + self.per_part, self.n)} for start in starts]

    def read(self, part: Part) -> Iterator[Record]:
        for i in range(part["first"], part["last"]):
            made = pair(i, self.n)
            yield Record(
                key=Path(made.name).stem,
                origin=made.name,
                image=made.image,
                caption=made.caption if made.json is None else json.loads(made.json)["caption"],
                problem=("missing file", f"{made.name} does not exist") if made.image is None else None,
            )


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
