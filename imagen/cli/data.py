"""`imagen data build` and `imagen data inspect`: options, help, and what they do. Heavy imports are inside."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.cli.values import count, engine, number, processes
from imagen.errors import UserError

if TYPE_CHECKING:
    from imagen.data.build.engines import Engine


def add_build(command: Callable[..., Any]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "build",
        build,
        "check pairs of pictures and captions and write them as shards",
        "SOURCE is a folder of pictures with .txt, .caption, .text or .json captions beside them; a table (csv, tsv,\n"
        "jsonl, json, parquet), or a folder with a metadata.csv or metadata.jsonl in it or in each of its folders;\n"
        "a data set of Hugging Face's on disk; or shards, which are checked and indexed where they lie. What is not\n"
        "good enough is listed in *.rejected.jsonl. May be stopped and run again.\n\n"
        "  imagen data build photos --out shards\n"
        "  imagen data build pairs.csv --image-column file --caption-column text --out shards --min-side 256\n"
        "  imagen data build img2dataset_output\n"
        "  imagen data build /shared/pairs --out /shared/shards --engine ray --ray-address auto",
    )
    sub.add_argument("source", type=Path, metavar="SOURCE", help="a file or a folder")
    sub.add_argument("--out", type=Path, metavar="SHARDS", help="the folder to build")
    sub.add_argument("--format", metavar="NAME", help="of the source (default: told by what is there)")
    sub.add_argument("--image-column", metavar="NAME", help="of a table: pictures, or paths of them")
    sub.add_argument("--caption-column", metavar="NAME", help="of a table")
    sub.add_argument(
        "--caption-from",
        choices=("folder", "name"),
        help="of pictures in a folder: the name of their folder (a class), or their own, is the caption",
    )
    sub.add_argument("--min-side", type=count, default=64, metavar="N", help="pixels of the shorter side (default: 64)")
    sub.add_argument(
        "--max-aspect", type=number, default=4.0, metavar="R", help="longer side by shorter side (default: 4)"
    )
    sub.add_argument(
        "--max-caption", type=count, default=2000, metavar="N", help="characters of a caption (default: 2000)"
    )
    sub.add_argument(
        "--max-rejected", type=number, default=0.5, metavar="F", help="share that may be rejected (default: 0.5)"
    )
    sub.add_argument("--first-frame", action="store_true", help="take the first frame of animations and pages")
    sub.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep pictures that are there already, each row of a table as a sample",
    )
    sub.add_argument("--copy", action="store_true", help="build new shards from shards")
    sub.add_argument("--samples-per-shard", type=count, default=1000, metavar="N", help="at most (default: 1000)")
    sub.add_argument(
        "--workers", type=processes, metavar="N", help="processes (default: one for each core, at most 16)"
    )
    add_engine(sub)
    sub.add_argument("--encoder", metavar="NAME", help="which one made the embeddings that the source brings")
    sub.add_argument("--max-tokens", type=count, metavar="N", help="of these embeddings")


def add_engine(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--engine", type=engine, default="local", metavar="NAME", help="local, or ray: a Ray cluster (default: local)"
    )
    sub.add_argument(
        "--ray-address", metavar="HOST:PORT", help="of the cluster (default: RAY_ADDRESS, else Ray on this machine)"
    )


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[bool]:
    """Whether the command uses a Ray cluster; it is connected to it within the block."""
    if options.engine == "local":
        if options.ray_address is not None:
            raise UserError("--ray-address belongs to --engine ray")
        yield False
        return
    from imagen.data.build import cluster

    with cluster.connected(options.ray_address, options.workers):
        yield True


def build(options: argparse.Namespace) -> None:
    with connected(options) as on_cluster:
        engine = None
        if on_cluster:
            from imagen.data.build.cluster import builders

            engine = builders(options.workers)
        _build(options, engine)


def _build(options: argparse.Namespace, engine: "Engine | None") -> None:
    from imagen.data.build.dataset import build
    from imagen.data.build.quality import Limits

    built = build(
        options.source,
        options.out,
        format=options.format,
        image_column=options.image_column,
        caption_column=options.caption_column,
        caption_from=options.caption_from,
        copy=options.copy,
        limits=Limits(
            min_side=options.min_side,
            max_aspect=options.max_aspect,
            max_caption=options.max_caption,
            first_frame=options.first_frame,
        ),
        samples_per_shard=options.samples_per_shard,
        keep_duplicates=options.keep_duplicates,
        max_rejected=options.max_rejected,
        encoder=options.encoder,
        max_tokens=options.max_tokens,
        workers=options.workers,
        engine=engine,
    )
    folder = options.out or (options.source if options.source.is_dir() else options.source.parent)
    shards = "1 shard" if built["shards"] == 1 else f"{built['shards']:,} shards"
    captions = f" with {built['captions']:,} captions" if built["captions"] > built["samples"] else ""
    print(f"{folder}: {built['samples']:,} samples{captions} in {shards}, of {built['records']:,} records")
    for reason, rejected in built["rejected"].items():
        print(f"  {rejected:,} rejected: {reason}")
    print(f"look at it: imagen data inspect {folder} --html data.html")
    if options.encoder is None:
        print(f"then: imagen data encode {folder}")


def add_inspect(command: Callable[..., Any]) -> None:
    """command: as for `add_build`."""
    sub = command(
        "inspect",
        inspect,
        "show what shards hold and what was rejected",
        "Counts are of all samples; sizes and captions of at most 10,000 of a split, evenly spread.\n\n"
        "  imagen data inspect shards --html data.html",
    )
    sub.add_argument("shards", type=Path, metavar="SHARDS", help="a folder of shards, however made")
    sub.add_argument("--json", action="store_true", help="print an object")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures, captions and rejects")


def inspect(options: argparse.Namespace) -> None:
    from imagen.data.shards.inspect import inspect

    summary = inspect(options.shards)
    if options.html:
        from imagen.data.shards.gallery import write_gallery

        write_gallery(options.html, options.shards, summary)
    if options.json:
        print(json.dumps(summary, indent=2))
    elif options.html:
        print(f"{options.html}: {sum(split['samples'] for split in summary['splits'].values()):,} samples")
    else:
        _print(summary)


def _print(summary: dict[str, Any]) -> None:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    from imagen.data.build.quality import REASONS
    from imagen.data.shards.gallery import bar_name

    console = Console(markup=False)  # names are shown as they are

    def show(table: Table, numbers: int) -> None:
        for column in table.columns[1 : 1 + numbers]:
            column.justify = "right"
        console.print(table)

    table = Table("split", "samples", "shards", "MB", "embeddings")
    for name, split in summary["splits"].items():
        texts = [
            f"{row['share']:.0%} {row['encoder']} (revision {row['revision']}, max_tokens {row['max_tokens']})"
            + (f"\n{row['cut']:,} captions cut, by {row['cut_most']:,} tokens at most" if row["cut"] else "")
            for row in split["embeddings"]
        ]
        sizes = (f"{split['samples']:,}", f"{split['shards']:,}", f"{split['bytes'] / 1e6:,.1f}")
        table.add_row(name, *sizes, "\n".join(texts) or "none")
    show(table, 3)
    for name, split in summary["splits"].items():
        for what, title in (("sides", "shorter side, pixels"), ("captions", "caption, characters")):
            table = Table(title, "samples", title=f"{name}: {split['looked_at']:,} looked at")
            for first, last, samples in split[what]:
                table.add_row(bar_name(first, last), f"{samples:,}")
            show(table, 1)
        if split["with_several"]:
            console.print(
                f"{name}: {split['with_several']:,} of {split['looked_at']:,} looked at have several captions, "
                f"{split['captions_looked_at'] / split['looked_at']:.1f} a picture on average"
            )
        if split["unreadable"]:
            console.print(f"{name}: {split['unreadable']:,} without a picture that can be read")
    if summary["rejected"]:
        table = Table("rejected", "records", "why")
        for reason, rejected in summary["rejected"].items():
            table.add_row(reason, f"{rejected:,}", REASONS.get(reason, ""))
        show(table, 1)
