"""`imagen compare`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command
from imagen.cli.output import Result


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs of one preset")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")


def run(options: argparse.Namespace) -> Result:
    from imagen.evaluate.compare import compare

    rows = compare(options.runs, options.out)
    return Result(rows, lambda: _show(rows, options.out))


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
    help="plot the curves of training runs over those of the reference run",
    add=add,
    run=run,
    details="  imagen compare runs/base --out curves.png",
)
