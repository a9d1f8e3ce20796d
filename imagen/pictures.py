"""Pictures in files: PNG that says how it was made, and contact sheets."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from imagen.errors import UserError
from imagen.files import open_given, parse_json, replacing

KEY = "imagen"  # keyword of the PNG text chunk
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files
BACKGROUND, INK = (255, 255, 255), (32, 32, 32)


def write_png(path: str | Path, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a PNG, atomically, with `metadata` as JSON in an iTXt chunk (UTF-8) named "imagen".

    Raises UserError if the file cannot be written.
    """
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_info(metadata))


def png_info(metadata: Mapping[str, Any] | None) -> PngInfo:
    """What `write_png` stores, for Pillow's `save`."""
    info = PngInfo()
    if metadata is not None:
        info.add_itxt(KEY, json.dumps(metadata, ensure_ascii=False, allow_nan=False), zip=False)
    return info


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture of any format as RGB: turned upright as a camera's EXIF says, transparency on white.

    Raises UserError naming the file if it is missing or broken.
    """
    try:
        with open_given(path) as file, Image.open(file) as opened:
            return as_rgb(opened)
    except BROKEN as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from None


def as_rgb(opened: Image.Image) -> Image.Image:
    """Decode it: turned upright as a camera's EXIF says, transparency on white. Raises one of BROKEN if it is."""
    image = ImageOps.exif_transpose(opened)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """What `write_png` stored, or None for a picture without it.

    Raises UserError naming the file if it is missing or no PNG at all.
    """
    try:
        with open_given(path) as file, Image.open(file) as image:
            image.load()  # text chunks may follow the pixels
            text = image.info.get(KEY)
        value = None if text is None else parse_json(text)
    except BROKEN as error:
        raise UserError(f"{path} is not a picture that can be read: {error}") from None
    return value if isinstance(value, dict) else None


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    cell: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """A grid of pictures on white, each with its caption below, wrapped and never cut inside a word.

    cell: side of the square that each picture is fitted into (default: the largest side, within
    128..512); smaller pictures are enlarged by whole factors so that their pixels stay visible.
    columns: default makes the sheet about as wide as high.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures")
    cell = cell or min(max(max(max(image.size) for image in images), 128), 512)
    columns = min(columns or _columns(len(images)), len(images))
    gap = max(cell // 16, 6)
    font, title_font = _font(max(cell // 16, 12)), _font(max(cell // 10, 15))
    wrapped = ["\n".join(_wrap(caption, font, cell)) for caption in captions or [""] * len(images)]

    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    below = [max(_height(measure, wrapped[i], font) for i in row) for row in rows]  # room for captions, a row
    width = columns * (cell + gap) + gap
    heading = "\n".join(_wrap(title, title_font, width - 2 * gap)) if title else ""
    top = gap + (_height(measure, heading, title_font) if heading else 0)

    sheet = Image.new("RGB", (width, top + sum(cell + gap + height for height in below)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.multiline_text((gap, gap // 2), heading, INK, font=title_font)
    y = top
    for row, height in zip(rows, below, strict=True):
        for column, i in enumerate(row):
            x = gap + column * (cell + gap)
            picture = _fit(images[i], cell)
            sheet.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
            draw.multiline_text((x, y + cell + 2), wrapped[i], INK, font=font)
        y += cell + gap + height
    return sheet


def _columns(count: int) -> int:
    """About as many columns as rows."""
    return max(round(count**0.5 + 0.25), 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(image: Image.Image, cell: int) -> Image.Image:
    """Enlarge by a whole factor, or shrink, to fit a square of side `cell`."""
    image = image.convert("RGB")
    factor = cell // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return image


def _wrap(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of `caption` at most `width` pixels wide; a word wider than that is broken."""
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif font.getlength(word) <= width:
            lines.append(word)
        else:
            letters = max(int(len(word) * width / font.getlength(word)) - 1, 1)
            lines += textwrap.wrap(word, letters)
    return lines


def _height(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Pixels that `text` takes, with a little air; 0 for none."""
    return int(draw.multiline_textbbox((0, 0), text, font=font)[3]) + 6 if text else 0
