"""`imagen evaluate` and `imagen compare`: options, help, and what they do. Heavy imports are inside."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen.cli.values import count, count_or_all, listed
from imagen.errors import UserError


def add_evaluate(command: Callable[..., Any]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "evaluate",
        evaluate,
        "measure how well a cascade of emoji follows prompts that it was never trained on",
        "Draws held-out prompts with the base stage: one object, two in a relation, two to four of a kind. A network\n"
        "that was trained on the real drawings says what the pictures show. Of a training run, the scores are added\n"
        "to RUN/evaluation.jsonl, for `imagen compare`.\n\n"
        "  imagen evaluate emoji --guidance 1,1.5,2,3\n"
        "  imagen evaluate runs/base --n 32 --out sheets",
    )
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade, a training run, or `emoji`")
    sub.add_argument("--n", type=count, default=64, metavar="N", help="prompts of each kind (default: 64)")
    sub.add_argument("--guidance", type=listed(float), metavar="W", help="weights to try (default: the stage's own)")
    sub.add_argument("--steps", type=count, metavar="N", help="of the sampler (default: the stage's own)")
    sub.add_argument("--objects", type=count_or_all, default=96, metavar="N", help="of the data set (default: 96)")
    sub.add_argument("--batch-size", type=count, default=16, metavar="N", help="pictures at a time (default: 16)")
    sub.add_argument("--recogniser", type=Path, metavar="DIR", help="another than the package's")
    sub.add_argument("--out", type=Path, metavar="DIR", help="write a sheet of the pictures for each weight")
    sub.add_argument("--json", action="store_true", help="print a list of objects")


def add_compare(command: Callable[..., Any]) -> None:
    """command: as for `add_evaluate`."""
    sub = command(
        "compare",
        compare,
        "draw the curves of training runs over those of the reference run",
        "  imagen compare runs/base --out curves.png",
    )
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs of one preset")
    sub.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    sub.add_argument("--json", action="store_true", help="print a list of objects")


def evaluate(options: argparse.Namespace) -> None:
    from imagen.cascade import Cascade
    from imagen.emoji.evaluation import scores
    from imagen.emoji.recogniser import load_recogniser
    from imagen.evaluate.curve import append
    from imagen.pictures import contact_sheet, write_png

    recogniser = load_recogniser(options.recogniser)
    cascade = Cascade.load(options.cascade, stages=1)
    if cascade.text is None:
        raise UserError(f"{options.cascade} reads no prompts")

    def keep(weight: float, captions: list[str], pictures: list[Any]) -> None:
        if options.out is not None:
            sheet = contact_sheet(pictures, captions, columns=8, cell=128)
            write_png(options.out / f"guidance-{weight:g}.png", sheet)

    rows = []
    for row in scores(
        cascade,
        recogniser,
        guidance=options.guidance or (None,),
        n=options.n,
        limit_objects=options.objects,
        steps=options.steps,
        batch_size=options.batch_size,
        on_pictures=keep,
    ):
        rows.append(row)
        if (options.cascade / "metrics.jsonl").is_file():
            append(options.cascade, row)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)


def compare(options: argparse.Namespace) -> None:
    from imagen.evaluate.compare import compare as draw

    rows = draw(options.runs, options.out)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for row in rows:
        table = Table(f"{row['run']}, {row['images']:,} pictures", "this run", "reference")
        table.columns[1].justify = table.columns[2].justify = "right"
        for key, value in row["mine"].items():
            if key not in ("step", "images"):
                other = row["reference"].get(key)
                table.add_row(key, f"{value:.4f}", "" if other is None else f"{other:.4f}")
        Console(markup=False).print(table)
    print(f"curves: {options.out}")


def _print(rows: list[dict[str, Any]]) -> None:
    """A table for people: percent right, by kind of prompt."""
    from rich.console import Console
    from rich.table import Table

    columns = [
        ("object", "single", "object"),
        ("colour", "single", "colour"),
        ("both objects", "relation", "object"),
        ("relation", "relation", "relation"),
        ("object, several", "count", "object"),
        ("number", "count", "number"),
    ]
    table = Table("guidance", *(title for title, _, _ in columns), "KID (drawings)", caption="% of held-out prompts")
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        shares = [row.get(kind, {}).get(what) for _, kind, what in columns]
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        table.add_row(f"{row['guidance']:g}", *cells, f"{row['kid']:.2f} ({row['kid_floor']:.2f})")
    Console(markup=False).print(table)
