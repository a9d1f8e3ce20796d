"""`imagen presets`"""

import argparse
from typing import Any

from imagen.cli.command import Command
from imagen.cli.output import Result


def add(parser: argparse.ArgumentParser) -> None:
    """Add no options: the command takes none of its own."""


def run(options: argparse.Namespace) -> Result:
    from imagen.presets import PRESETS
    from imagen.presets.description import describe
    from imagen.progress import progress_bar

    presets = list(PRESETS.values())
    with progress_bar(iterable=presets, desc="networks", unit="preset", leave=False, delay=1) as bar:
        rows = [describe(function()) for function in bar]
    return Result(rows, lambda: _show(rows))


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "parameters", "resolution", "GFLOP per image", caption="GFLOP: one forward pass")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        low = f"{row['low_resolution']} -> " if row["low_resolution"] else ""
        crop = f" (crop {row['side']})" if row["side"] != row["resolution"] else ""
        table.add_row(
            row["name"], f"{row['parameters'] / 1e6:,.1f}M", f"{low}{row['resolution']}", f"{row['gflop']:,.1f}{crop}"
        )
    Console().print(table)


COMMAND = Command(
    name="presets",
    help="list the presets with their sizes",
    add=add,
    run=run,
    details="  imagen presets\n  imagen presets --json",
)
