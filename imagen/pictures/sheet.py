"""Compose contact sheets: images in a grid, each with its caption."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = (255, 255, 255), (32, 32, 32)


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    cell: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """Return a grid of images on white, each with its caption wrapped below it.

    columns: default: the sheet is about as wide as high.
    cell: side in pixels of the square that each image is fitted into (default: the largest side, within 128 to 512).
        Smaller images are upscaled by integer factors, so that their pixels remain visible.
    title: heading above the grid.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    cell = cell or min(max(max(max(image.size) for image in images), 128), 512)
    columns = min(columns or _columns(len(images)), len(images))
    gap = max(cell // 16, 6)
    font, title_font = _font(max(cell // 16, 12)), _font(max(cell // 10, 15))
    wrapped = ["\n".join(wrap_text(caption, font, cell)) for caption in captions or [""] * len(images)]

    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    caption_heights = [max(_height(measure, wrapped[i], font) for i in row) for row in rows]
    width = columns * (cell + gap) + gap
    heading = "\n".join(wrap_text(title, title_font, width - 2 * gap)) if title else ""
    top = gap + (_height(measure, heading, title_font) if heading else 0)

    sheet = Image.new("RGB", (width, top + sum(cell + gap + height for height in caption_heights)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if heading:
        draw.multiline_text((gap, gap // 2), heading, INK, font=title_font)
    y = top
    for row, height in zip(rows, caption_heights, strict=True):
        for column, i in enumerate(row):
            x = gap + column * (cell + gap)
            image = _fit(images[i], cell)
            sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
            draw.multiline_text((x, y + cell + 2), wrapped[i], INK, font=font)
        y += cell + gap + height
    return sheet


def _columns(count: int) -> int:
    """Return a number of columns that is about the number of rows."""
    return max(round(count**0.5 + 0.25), 1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(image: Image.Image, cell: int) -> Image.Image:
    """Upscale by an integer factor, or shrink, to fit a square of side `cell`."""
    image = image.convert("RGB")
    factor = cell // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return image


def wrap_text(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Split `caption` into lines of at most `width` pixels; break a word only if it is wider than that."""
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
    """Return the height of `text` in pixels with some padding; 0 for an empty text."""
    return int(draw.multiline_textbbox((0, 0), text, font=font)[3]) + 6 if text else 0
