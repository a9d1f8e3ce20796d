"""`imagen compare`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command
from imagen.cli.output import Result


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="runs of one preset, or outputs of `imagen evaluate`"
    )
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")


def run(options: argparse.Namespace) -> Result:
    from imagen.evaluate.compare import compare
    from imagen.evaluate.side_by_side import is_evaluation, side_by_side

    if all(map(is_evaluation, options.runs)):
        found = side_by_side(options.runs, options.out)
        return Result(found, lambda: _show_evaluations(found, options.out))
    rows = compare(options.runs, options.out)
    return Result(rows, lambda: _show(rows, options.out))


def _show_evaluations(rows: list[dict[str, Any]], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(row["name"] for row in rows))
    for metric in dict.fromkeys(name for row in rows for name in row["metrics"]):
        cells = [row["metrics"].get(metric) for row in rows]
        shown = [
            "" if cell is None else f"{cell['value']:.4g} ({cell['low']:.4g} to {cell['high']:.4g})" for cell in cells
        ]
        table.add_row(metric, *shown)
    table.add_row("images", *(f"{row['images']:,}" for row in rows))
    Console(markup=False).print(table)
    print(f"plots: {out}")


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    for row in rows:
        table = Table(f"{row['run']}, {row['images']:,} images", "this run", "reference")
        table.columns[1].justify = table.columns[2].justify = "right"
        for key, value in row["mine"].items():
            if key not in ("step", "images"):
                other = row["reference"].get(key)
                table.add_row(key, f"{value:.4f}", "" if other is None else f"{other:.4f}")
        Console(markup=False).print(table)
    print(f"curves: {out}")


COMMAND = Command(
    name="compare",
    help="compare training runs with the reference run, or evaluations with each other",
    add=add,
    run=run,
    details="""Plots the curves of training runs over those of the reference run of the same preset. Outputs of
`imagen evaluate` are laid side by side instead: metrics with their 95 % intervals, in a table and as a plot.

  imagen compare runs/base --out curves.png
  imagen compare scores-a scores-b --out scores.png""",
)
