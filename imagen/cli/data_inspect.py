"""`imagen data inspect`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command
from imagen.cli.output import Result, lines


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="a folder of shards")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with images, captions and rejected records"
    )


def run(options: argparse.Namespace) -> Result:
    from imagen.data.shards.inspect import inspect

    summary = inspect(options.shards)
    if not options.html:
        return Result(summary, lambda: _show(summary))
    from imagen.data.shards.gallery import write_gallery

    write_gallery(options.html, options.shards, summary)
    samples = sum(split["samples"] for split in summary["splits"].values())
    return lines(summary, f"{options.html}: {samples:,} samples")


def _show(summary: dict[str, Any]) -> None:
    """Print the summary as tables."""
    from rich.console import Console
    from rich.table import Table

    from imagen.data.build.quality import REASONS
    from imagen.data.shards.inspect import bar_name

    console = Console(markup=False)  # names are shown as they are

    def show(table: Table, numbers: int) -> None:
        for column in table.columns[1 : 1 + numbers]:
            column.justify = "right"
        console.print(table)

    table = Table("split", "samples", "shards", "MB", "embeddings")
    for name, split in summary["splits"].items():
        texts = [
            f"{row['share']:.0%} {row['encoder']} (revision {row['revision']}, max_tokens {row['max_tokens']})"
            + (f"\n{row['cut']:,} captions truncated, losing {row['cut_most']:,} tokens at most" if row["cut"] else "")
            for row in split["embeddings"]
        ]
        sizes = (f"{split['samples']:,}", f"{split['shards']:,}", f"{split['bytes'] / 1e6:,.1f}")
        table.add_row(name, *sizes, "\n".join(texts) or "none")
    show(table, 3)
    for name, split in summary["splits"].items():
        for what, title in (("sides", "shorter side, pixels"), ("captions", "caption, characters")):
            table = Table(title, "samples", title=f"{name}: {split['looked_at']:,} samples examined")
            for first, last, samples in split[what]:
                table.add_row(bar_name(first, last), f"{samples:,}")
            show(table, 1)
        if split["with_several"]:
            console.print(
                f"{name}: {split['with_several']:,} of {split['looked_at']:,} examined samples have several captions, "
                f"{split['captions_looked_at'] / split['looked_at']:.1f} per image on average"
            )
        if split["unreadable"]:
            console.print(f"{name}: {split['unreadable']:,} without a readable image")
    if summary["rejected"]:
        table = Table("rejected", "records", "reason")
        for reason, rejected in summary["rejected"].items():
            table.add_row(reason, f"{rejected:,}", REASONS.get(reason, ""))
        show(table, 1)


COMMAND = Command(
    name="data inspect",
    help="show what shards contain and what was rejected",
    add=add,
    run=run,
    details="Counts include all samples. Image sizes and caption lengths are those of at most 10,000 evenly spaced\n"
    "samples per split.\n\n"
    "  imagen data inspect shards --html data.html",
)
