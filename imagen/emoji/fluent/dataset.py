"""Build shards of Fluent Emoji: single drawings, two in a relation, or two to four copies of one.

    python -m imagen.emoji.fluent.dataset --icons ICONS.JSON --names EMOJIBASE-DATA --out SHARDS

ICONS.JSON is a file of the npm package @iconify-json/fluent-emoji, and EMOJIBASE-DATA the folder of the npm package
emojibase-data. The arguments and the seed determine every image. The masters of all sizes show the same image.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from imagen.data.build.splits import finished_build, write_splits
from imagen.emoji.fluent.catalogue import GENDERS, Drawing
from imagen.emoji.fluent.heldout import heldout_colour, heldout_number, is_heldout_pair, is_heldout_person
from imagen.emoji.fluent.scene import Scene, compose_group, compose_pair, compose_single
from imagen.emoji.fluent.selection import Selection, add_options, selection
from imagen.emoji.openmoji import Style, rasterise
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.scene import NUMBERS, RELATIONS, is_countable
from imagen.emoji.styles import credit
from imagen.errors import UserError, check_number, exit_on_user_error
from imagen.files import read_json

MOST_MISSES = 100_000  # consecutive draws of pairs of which none is in the split


def build_fluent(
    out: str | Path,
    selected: Selection,
    sizes: Sequence[int] = (64,),
    *,
    variants: int = 4,
    people_variants: int = 4,
    relations: float = 0.0,
    counts: float = 0.0,
    most: int | None = None,
    most_heldout: int | None = None,
    degrade: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Build `out`/train and `out`/heldout; return the content of `out`/dataset.json.

    variants, people_variants: images per drawing and colour, of things and faces, and of people.
    relations, counts: fractions of the samples that show two things in a relation, and two to four copies of one.
    most, most_heldout: maximum numbers of samples of the training and the held-out split; `most_heldout` defaults to
        `most`.
    degrade: degrade the smallest master of each sample, so that it resembles an output of a base model.

    A finished build is not repeated; a killed one starts over. Raises UserError if `out` contains other files or a
    build with other arguments, or if files or packages are missing.
    """
    out, sizes = Path(out), sorted(set(sizes))
    for name, value in (("words", selected.words), ("variants", variants), ("people_variants", people_variants)):
        check_number(name, value, least=1)
    if not sizes or sizes[0] < 16:
        raise UserError(f"sizes {sizes}: there must be at least one size, and sizes must be 16 pixels or more")
    if degrade and len(sizes) < 2:
        raise UserError("degraded masters are inputs of super-resolution: give two sizes or more (--sizes 64 256)")
    for name, maximum in (("most", most), ("most_heldout", most_heldout)):
        if maximum is not None:
            check_number(name, maximum, least=1)
    check_number("relations", relations, least=0)
    check_number("counts", counts, least=0)
    check_number("relations + counts", relations + counts, most=0.9)
    arguments: dict[str, Any] = {
        "sizes": sizes,
        "words": selected.words,
        "faces": selected.faces,
        "roles": list(selected.roles),
        "limit": selected.limit,
        "variants": variants,
        "people_variants": people_variants,
        "relations": relations,
        "counts": counts,
        "seed": seed,
    }
    genders = sorted({*selected.genders})
    genders = genders if len(genders) <= len(GENDERS) else []  # all of them
    optional = (
        ("most", most),
        ("most_heldout", most_heldout),
        ("degrade", degrade),
        ("genders", genders),
        ("common", selected.common),
    )
    arguments |= {name: value for name, value in optional if value}
    if finished := finished_build(out, arguments):
        return finished
    source, drawings, persons = selected.source, selected.things(), selected.people()
    rasterise('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')  # reports a missing package early
    splits = {
        name: scenes(
            drawings,
            persons,
            source.icons,
            variants=variants,
            people_variants=people_variants,
            relations=relations,
            counts=counts,
            seed=seed,
            heldout=name == "heldout",
        )
        for name in ("train", "heldout")
    }
    limits = {"train": most, "heldout": most if most_heldout is None else most_heldout}
    splits = {
        name: [replace(scene, degrade_smallest=degrade) for scene in split[: limits[name]]]
        for name, split in splits.items()
    }
    description = {
        **credit(Style("fluent", source.icons)),
        "packages": {file: _version(Path(path)) for file, path in source._asdict().items()},
        "things": len(drawings),
        "people": len(persons),
        "colours": {colour: list(rgb) for colour, rgb in PALETTE.items()},
        "names": sorted({each.name for each in (*drawings, *persons)}),
    }
    return write_splits(out, arguments, splits, sizes, description, workers=workers, progress=progress)


def scenes(
    drawings: Sequence[Drawing],
    persons: Sequence[Drawing],
    icons: str,
    *,
    variants: int,
    people_variants: int,
    relations: float,
    counts: float,
    seed: int,
    heldout: bool,
) -> list[Scene]:
    """Return the images of a split, shuffled.

    These are held out: one colour per drawing, some combinations of role, gender and tone on every colour, some pairs
    of things, and one count per thing.
    """
    split = []
    for drawing in (*drawings, *persons):
        for colour in PALETTE:
            if (colour == heldout_colour(drawing) or is_heldout_person(drawing)) == heldout:
                number = variants if drawing.role is None else people_variants
                split += [compose_single(drawing, colour, icons, variant, seed) for variant in range(number)]
    total = len(split) / (1 - relations - counts)
    split += islice(_pairs(drawings, icons, seed, heldout=heldout), round(relations * total))
    countable = [each for each in drawings if is_countable(each)]
    split += islice(_groups(countable, icons, seed, heldout=heldout), round(counts * total))
    return sorted(split, key=lambda scene: hashed(seed, "order", scene.key))


def _pairs(drawings: Sequence[Drawing], icons: str, seed: int, *, heldout: bool) -> Iterator[Scene]:
    """Yield scenes. Draw k is a function of (seed, k) and the drawings; some draws yield no scene.

    Ends if there seem to be no such pairs: with few drawings, perhaps none is held out.
    """
    found = -1
    for k in count() if len(drawings) > 1 else ():
        if k - found > MOST_MISSES:
            return
        rng = random.Random(hashed(seed, "fluent pairs", k))
        first, second = _pick(rng, drawings), _pick(rng, drawings)
        relation, colour = _pick(rng, list(RELATIONS)), _pick(rng, list(PALETTE))
        if first.icon == second.icon or colour in (heldout_colour(first), heldout_colour(second)):
            continue
        if is_heldout_pair(first, second) == heldout:
            found = k
            yield compose_pair(first, second, relation, colour, icons, seed, f"pair-{k:06d}")


def _groups(drawings: Sequence[Drawing], icons: str, seed: int, *, heldout: bool) -> Iterator[Scene]:
    for k in count() if drawings else ():
        rng = random.Random(hashed(seed, "fluent groups", k))
        drawing, number, colour = _pick(rng, drawings), _pick(rng, list(NUMBERS)), _pick(rng, list(PALETTE))
        if colour != heldout_colour(drawing) and (number == heldout_number(drawing)) == heldout:
            yield compose_group(drawing, number, colour, icons, seed, f"group-{k:06d}")


def _pick(rng: random.Random, choices: Sequence[Any]) -> Any:
    return choices[int(rng.random() * len(choices))]


def _version(path: Path) -> str:
    """Return the name and version of the npm package that contains `path`, or "unknown"."""
    package = (path if path.is_dir() else path.parent) / "package.json"
    if not package.is_file():
        return "unknown"
    about = read_json(package)
    return f"{about.get('name')} {about.get('version')}" if isinstance(about, dict) else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="sides of the masters in pixels")
    parser.add_argument("--variants", type=int, default=4, help="images per thing and colour")
    parser.add_argument("--people-variants", type=int, default=4, help="images per person and colour")
    parser.add_argument("--relations", type=float, default=0.0, help="fraction of images of two things")
    parser.add_argument("--counts", type=float, default=0.0, help="fraction of images of two to four copies")
    parser.add_argument("--most", type=int, help="maximum number of samples per split")
    parser.add_argument("--most-heldout", type=int, help="maximum number of held-out samples (default: --most)")
    parser.add_argument("--degrade", action="store_true", help="degrade the smallest master, to train super-resolution")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: one per core, at most 16)")
    options = parser.parse_args()
    built = build_fluent(
        options.out,
        selection(options),
        options.sizes,
        variants=options.variants,
        people_variants=options.people_variants,
        relations=options.relations,
        counts=options.counts,
        most=options.most,
        most_heldout=options.most_heldout,
        degrade=options.degrade,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"{options.out}: {built['samples']}, of {built['things']} things and {built['people']} people")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
