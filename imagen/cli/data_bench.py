"""`imagen data bench`"""

import argparse
from typing import Any

from imagen.cli.command import Command
from imagen.cli.output import Result, counted
from imagen.cli.values import count, minutes, side, whole


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="a folder or a URL")
    parser.add_argument(
        "--resolution", type=side, default=64, metavar="N", help="resolution of the stage (default: 64)"
    )
    parser.add_argument("--low-resolution", type=side, metavar="N", help="input resolution of a super-resolution stage")
    parser.add_argument("--crop", type=count, metavar="N", help="side of random crops (default: none)")
    parser.add_argument(
        "--buckets", metavar="SIZES", help="aspect-ratio buckets as data.buckets: auto, or 64x64,80x48 (width x height)"
    )
    parser.add_argument("--full-decode", action="store_true", help="decode JPEGs at full size")
    parser.add_argument(
        "--seconds",
        type=minutes,
        default=10.0,
        metavar="S",
        help="duration of each of the two measurements (default: 10)",
    )
    parser.add_argument(
        "--workers", type=whole, default=2, metavar="N", help="loader processes in the second one (default: 2)"
    )


def run(options: argparse.Namespace) -> Result:
    from imagen.data.loading.bench import bench
    from imagen.data.loading.config import DataConfig

    config = DataConfig(
        crop=options.crop, buckets=options.buckets, full_decode=options.full_decode, workers=options.workers
    )
    config.check()
    found = bench(
        options.shards,
        config,
        resolution=options.resolution,
        low_resolution=options.low_resolution,
        seconds=options.seconds,
    )
    return Result(found, lambda: _show(found, options.workers))


def _show(found: dict[str, Any], workers: int) -> None:
    from rich.console import Console
    from rich.table import Table

    text = "no embeddings" if found["encoder"] is None else f"embeddings of {found['encoder']}"
    table = Table("one process", "ms per image", "share", caption=f"{found['kilobytes']:,.0f} kB per image; {text}")
    table.columns[1].justify = table.columns[2].justify = "right"
    total = sum(found["milliseconds"].values())
    for part, value in found["milliseconds"].items():
        table.add_row(part, f"{value:.2f}", f"{value / total:.0%}")
    Console().print(table)
    if found["images_per_bucket"] is not None:
        print(f"images per bucket: {', '.join(f'{size} {n:,}' for size, n in found['images_per_bucket'].items())}")
    print(f"{found['images_per_s']:,.0f} images/s in one process")
    if workers:
        each = f"{found['images_per_s_a_worker']:,.0f} per worker, on {counted(found['cores'], 'core')}"
        print(f"{found['workers_images_per_s']:,.0f} images/s from {counted(workers, 'worker')}: {each}")


COMMAND = Command(
    name="data bench",
    help="measure how fast shards load, and where the time goes",
    add=add,
    run=run,
    details="  imagen data bench shards --resolution 256 --low-resolution 64 --workers 4\n"
    "  imagen data bench shards --resolution 64 --buckets auto\n"
    "  imagen data bench https://example.org/shards --seconds 60",
)
