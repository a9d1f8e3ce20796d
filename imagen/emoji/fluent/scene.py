"""Compose images of one drawing, of two in a relation, or of two to four copies of one.

Key and seed determine an image. Lengths are fractions of the image's side. The extent of a drawing is the longer side
of the box around its visible pixels.
"""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen.emoji.fluent import captions
from imagen.emoji.fluent.background import Background, draw_background
from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.fluent.degrade import degraded
from imagen.emoji.fluent.sprites import drawing_box, layer
from imagen.emoji.picture import choose, hashed
from imagen.emoji.scene import LAYOUTS, RELATIONS
from imagen.emoji.single import PLACES

LICENCE = "Fluent Emoji, Microsoft, MIT"
USUAL, SMALL = (0.75, 0.95), (0.28, 0.42)  # extents of a single drawing
SHARE_SMALL = 0.12  # fraction of single drawings that are small
SEVERAL = (0.36, 0.46)  # extents of two to four drawings


class Placed(NamedTuple):
    """A drawing, its extent, and the centre of its visible pixels: x from the left, y from the top."""

    drawing: Drawing
    extent: float
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image with its caption."""

    key: str
    caption: str
    background: Background
    placed: tuple[Placed, ...]
    icons: str  # path of icons.json
    size: str = ""  # of a single drawing: "" or "small"
    place: str = "center"  # of a single drawing: a name in PLACES
    relation: str | None = None  # of the first drawing to the second: a name in RELATIONS
    degrade_smallest: bool = False  # degrade the smallest master, to train super-resolution

    @property
    def about(self) -> dict[str, Any]:
        """A description of the image, as JSON."""
        first = self.placed[0].drawing
        about: dict[str, Any] = {"object": first.name, "icon": first.icon, "colour": self.background.colour}
        if first.role is not None:
            about |= {"role": first.role, "gender": first.gender or "person", "tone": first.tone or "yellow"}
        if self.relation is not None:
            last = self.placed[-1].drawing
            about |= {"relation": self.relation, "other": last.name, "other_icon": last.icon}
        elif len(self.placed) > 1:
            about["count"] = len(self.placed)
        else:
            about |= {"size": self.size or "usual", "place": self.place}
        about["gradient"] = self.background.gradient
        about["boxes"] = [[round(value, 4) for value in (extent, x, y)] for _, extent, x, y in self.placed]
        return about | {"licence": LICENCE}

    def pixels(self, size: int) -> np.ndarray:
        """Render the image as uint8 [size, size, 3]."""
        image = self.background.pixels(size)
        for drawing, extent, x, y in self.placed:
            left, top, right, bottom = drawing_box(self.icons, drawing.icon)
            side = extent / max(right - left, bottom - top)
            # The centre of the square that puts the centre of the visible pixels at (x, y).
            centre = (x + side * (0.5 - (left + right) / 2), y + side * (0.5 - (top + bottom) / 2))
            rgba, (column, row) = layer(self.icons, drawing.icon, side, *centre, size)
            height, width, _ = rgba.shape
            under = image[row : row + height, column : column + width]
            under *= 1 - rgba[..., 3:] / 255
            under += rgba[..., :3]
        return image.round().clip(0, 255).astype(np.uint8)

    def sample(self, sizes: Sequence[int]) -> dict[str, Any]:
        """Return the members of a sample in a shard. Raises UserError if the rasteriser is missing."""
        masters = {}
        for size in sizes:
            pixels = self.pixels(size)
            if self.degrade_smallest and size == min(sizes):
                pixels = degraded(pixels, random.Random(hashed("degraded", self.key)))
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG", compress_level=1)
            masters[f"{size}.png"] = png.getvalue()
        return {"__key__": self.key, **masters, "txt": self.caption.encode(), "json": json.dumps(self.about).encode()}


def compose_single(drawing: Drawing, colour: str, icons: str, variant: int = 0, seed: int = 0) -> Scene:
    """Return an image of `drawing` on `colour`: usually large and centred, but one in eight is small and anywhere."""
    key = f"{drawing.icon}-{colour}-{variant}"
    rng = random.Random(hashed(seed, "single", key))
    background = draw_background(rng, colour)
    small = rng.random() < SHARE_SMALL
    place = choose(rng, {name: 1 / len(PLACES) for name in PLACES}) if small else "center"
    extent = _between(rng, *(SMALL if small else USUAL))
    to_x, to_y, _ = PLACES[place]
    room = (1 - extent) / 2 - 0.01  # distance from the centre at which the drawing touches the border
    x, y = (
        0.5 + (to * room * _between(rng, 0.8, 1.0) if to else min(room, 0.03) * _between(rng, -1, 1))
        for to in (to_x, to_y)
    )
    size = "small" if small else ""
    return Scene(
        key=key,
        caption=captions.single(drawing, background, size, place, rng.random()),
        background=background,
        placed=(Placed(drawing, extent, x, y),),
        icons=icons,
        size=size,
        place=place,
    )


def compose_pair(
    first: Drawing, second: Drawing, relation: str, colour: str, icons: str, seed: int = 0, key: str = ""
) -> Scene:
    """Return an image of `first` in `relation` to `second`."""
    rng = random.Random(hashed(seed, "pair", key))
    background = draw_background(rng, colour)
    to_x, to_y, _ = RELATIONS[relation]
    placed = []
    for drawing, sign in ((first, 1), (second, -1)):
        extent = _between(rng, *SEVERAL)
        room = 0.25 - extent / 2  # along the axis on which both lie
        x = 0.5 + sign * to_x * 0.25 + _between(rng, -1, 1) * (room if to_x else 0.06)
        y = 0.5 + sign * to_y * 0.25 + _between(rng, -1, 1) * (room if to_y else 0.06)
        placed.append(Placed(drawing, extent, x, y))
    caption = captions.pair(first, second, relation, background, rng.random())
    return Scene(key=key, caption=caption, background=background, placed=tuple(placed), icons=icons, relation=relation)


def compose_group(drawing: Drawing, number: int, colour: str, icons: str, seed: int = 0, key: str = "") -> Scene:
    """Return an image of `number` copies of `drawing`, 2 to 4, all of the same size."""
    rng = random.Random(hashed(seed, "group", key))
    background = draw_background(rng, colour)
    extent = _between(rng, *SEVERAL)
    room = 0.25 - extent / 2
    placed = tuple(
        Placed(drawing, extent, 0.5 + x + room * _between(rng, -1, 1), 0.5 + y + room * _between(rng, -1, 1))
        for x, y in LAYOUTS[number]
    )
    caption = captions.group(drawing, number, background, rng.random())
    return Scene(key=key, caption=caption, background=background, placed=placed, icons=icons)


def _between(rng: random.Random, least: float, most: float) -> float:
    return least + (most - least) * rng.random()
