"""Compose and rasterise images of the embedded data set: drawings on a background of one colour, at any size."""

import hashlib
import io
import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from imagen.emoji.openmoji import Emoji, rasterise
from imagen.emoji.styles import drawing_box, inner_svg

# Natural colours, adjusted until the distance between any two in CIELAB is at least 49. Classifying a background is
# then robust to noise, JPEG compression and the blur of generated images.
PALETTE: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (120, 120, 120),
    "red": (225, 20, 40),
    "orange": (255, 145, 0),
    "yellow": (250, 230, 30),
    "green": (25, 160, 35),
    "teal": (0, 195, 170),
    "blue": (25, 80, 240),
    "purple": (125, 20, 130),
    "pink": (255, 145, 195),
    "brown": (115, 55, 5),
}


class Placed(NamedTuple):
    """A drawing and the square that it is placed in; it fills about 5/6 of the square.

    Lengths are fractions of the image's side.
    """

    emoji: Emoji
    side: float
    x: float  # centre of the square, 0 at the left
    y: float  # 0 at the top


@dataclass(frozen=True, kw_only=True)
class Picture(ABC):
    """One image with its caption."""

    key: str  # "1f419-blue-0"
    colour: str  # name in PALETTE
    caption: str

    @property
    @abstractmethod
    def placed(self) -> tuple[Placed, ...]:
        """The drawings. Their squares do not overlap."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """A description of the image, as JSON."""

    def svg(self, size: int) -> str:
        """Return the vector image, with one unit per pixel of a `size` x `size` image."""
        return self._svg(self.placed, size, (0, 0, size, size))

    def render(self, size: int) -> bytes:
        """Render an RGB PNG of `size` x `size` pixels. Raises UserError if the rasteriser is missing."""
        image = Image.new("RGB", (size, size), PALETTE[self.colour])
        # Rasterisation time grows with the number of pixels, so rasterise only the pixels that a drawing covers.
        for drawing in self.placed:
            left, top, right, bottom = drawing_box(drawing.emoji)
            x, y = drawing.x - drawing.side / 2, drawing.y - drawing.side / 2
            box = (
                max(0, math.floor((x + left * drawing.side) * size)),
                max(0, math.floor((y + top * drawing.side) * size)),
                min(size, math.ceil((x + right * drawing.side) * size)),
                min(size, math.ceil((y + bottom * drawing.side) * size)),
            )
            image.paste(rasterise(self._svg([drawing], size, box)).convert("RGB"), box)
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        return png.getvalue()

    def sample(self, sizes: Sequence[int]) -> dict[str, Any]:
        """Return the members of a sample in a shard."""
        masters = {f"{size}.png": self.render(size) for size in sizes}
        return {
            "__key__": self.key,
            **masters,
            "txt": self.caption.encode(),
            "json": json.dumps(self.about).encode(),
        }

    def _svg(self, drawings: Sequence[Placed], size: int, box: tuple[int, int, int, int]) -> str:
        """Return the region `box` (left, top, right, bottom) of the vector image, with only `drawings`."""
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        nested = ""
        for emoji, side, x, y in drawings:
            side, x, y = side * size, (x - side / 2) * size, (y - side / 2) * size
            view, inner = inner_svg(emoji)
            nested += (
                f'<svg x="{x:.4f}" y="{y:.4f}" width="{side:.4f}" height="{side:.4f}" viewBox="{view}">{inner}</svg>'
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="{left} {top} {width} {height}">'
            f'<rect width="{size}" height="{size}" fill="#{bytes(PALETTE[self.colour]).hex()}"/>{nested}</svg>'
        )


def background(colour: str) -> str:
    """Return the phrase for a background, such as "an orange background"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def in_style(caption: str, emoji: Emoji) -> str:
    """Append the style of the drawing to the caption, unless it is the default style."""
    return f"{caption}, {emoji.style.name} style" if emoji.style else caption


def choose(rng: random.Random, shares: dict[str, float]) -> str:
    """Choose a name at random with the probabilities `shares`, which add up to 1."""
    point = rng.random()  # no other method of Random has stable values across Python versions
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return name


def hashed(*parts: object) -> int:
    """Return a 64-bit hash of `parts` that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")
