"""`imagen evaluate-emoji`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command, add_cascade
from imagen.cli.output import Result
from imagen.cli.values import Listed, count, count_or_all
from imagen.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    parser.add_argument("--n", type=count, default=64, metavar="N", help="prompts of each kind (default: 64)")
    parser.add_argument(
        "--guidance", type=Listed(float), metavar="W,...", help="guidance scales to try (default: the stage's own)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="sampler steps (default: the stage's own)")
    parser.add_argument(
        "--objects",
        type=count_or_all,
        default=96,
        metavar="N",
        help="objects of OpenMoji, or `all` (default: 96)",
    )
    parser.add_argument("--batch-size", type=count, default=16, metavar="N", help="images per batch (default: 16)")
    parser.add_argument(
        "--recogniser",
        type=Path,
        metavar="DIR",
        help="the detector, with its prompts (default: the packaged one that knows the cascade's vocabulary)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write a sheet of the images for each guidance scale")


def run(options: argparse.Namespace) -> Result:
    from imagen.cascade import Cascade
    from imagen.emoji.evaluation import check_settings, choose_suite, identities, scores
    from imagen.emoji.recogniser import load_recogniser, packaged_recogniser
    from imagen.evaluate.curve import append
    from imagen.pictures import contact_sheet, read_metadata, write_png

    cascade = Cascade.load(options.cascade, stages=1)
    if cascade.text is None:
        raise UserError(f"{options.cascade} is not conditioned on text; evaluate a cascade that is")
    settings = {"guidance": options.guidance or (None,), "steps": options.steps, "batch_size": options.batch_size}
    check_settings(cascade, **settings)  # before the drawings are rendered
    folder = options.recogniser or packaged_recogniser(cascade.vocabulary.names if cascade.vocabulary else ())
    recogniser = load_recogniser(folder)
    suite = choose_suite(recogniser, folder, options.n, options.objects)
    marks: dict[float, dict[str, str]] = {}  # metadata of the sheets
    if options.out is not None:
        found = identities(cascade, recogniser, suite, guidance=settings["guidance"], steps=options.steps)
        marks = {weight: {"evaluation": identity} for weight, identity in found.items()}
    for weight, mark in marks.items():
        path = _sheet(options.out, weight)
        if path.exists() and read_metadata(path) != mark:
            raise UserError(f"{path} already exists and is not of this evaluation; move it, or choose another folder")

    def keep(weight: float, captions: list[str], pictures: list[Any]) -> None:
        if options.out is not None:
            sheet = contact_sheet(pictures, captions, columns=8, cell=128)
            write_png(_sheet(options.out, weight), sheet, marks[weight])

    rows = []
    for row in scores(cascade, recogniser, suite, on_pictures=keep, **settings):
        rows.append(row)
        if (options.cascade / "metrics.jsonl").is_file():
            append(options.cascade, row)
    return Result(rows, lambda: _show(rows))


def _sheet(out: Path, weight: float) -> Path:
    return out / f"guidance-{weight:g}.png"


MEASURES = (  # title, kind of prompt, name of the accuracy
    ("object", "single", "object"),
    ("background colour", "single", "colour"),
    ("person: all right", "people", "object"),
    ("person: role", "people", "role"),
    ("person: gender", "people", "gender"),
    ("person: skin tone", "people", "tone"),
    ("pair: both objects", "relation", "object"),
    ("pair: and their relation", "relation", "relation"),
    ("several: object", "count", "object"),
    ("several: number", "count", "number"),
)


def _show(rows: list[dict[str, Any]]) -> None:
    """Print accuracies in percent, one column per guidance scale."""
    from rich.console import Console
    from rich.table import Table

    table = Table("guidance scale", "prompts", *(f"{row['guidance']:g}" for row in rows))
    for column in table.columns[1:]:
        column.justify = "right"
    for title, kind, what in MEASURES:
        if kind in rows[0]:
            table.add_row(title, str(rows[0]["prompts"][kind]), *(f"{row[kind][what]:.1%}" for row in rows))
    table.add_row("KID", "", *(f"{row['kid']:.3f}" for row in rows))
    table.add_row("KID of original drawings", "", *(f"{row['kid_floor']:.3f}" for row in rows))
    Console(markup=False).print(table)


COMMAND = Command(
    name="evaluate-emoji",
    help="measure how well an emoji cascade follows held-out prompts",
    add=add,
    run=run,
    details="Samples held-out prompts with the base stage: one object, two objects in a relation, or two to four of\n"
    "one object; of Fluent Emoji, people in a role, too. A detector trained on the original drawings scores the\n"
    "images. The scores of a training run are appended to RUN/evaluation.jsonl, for `imagen compare`.\n\n"
    "  imagen evaluate-emoji emoji --guidance 1,1.5,2,3\n"
    "  imagen evaluate-emoji runs/base --n 32 --out sheets",
)
