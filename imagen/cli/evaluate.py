"""`imagen evaluate`"""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from imagen.cli.command import Command, add_cascade, add_device, add_precision
from imagen.cli.output import Result
from imagen.cli.values import Choice, Listed, count, whole
from imagen.errors import UserError
from imagen.evaluate import SWEPT
from imagen.evaluate.metrics.table import METRICS

WEIGHTS = ("inception", "clip", "dinov2")
COMPARISON = ("metrics", "split", "reference", "save_images", "inception", "dinov2")  # options without effect on suites


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    add_argument = parser.add_argument
    add_argument("--data", metavar="SHARDS", help="captions to sample, and images to compare with")
    add_argument("--suite", metavar="NAME", help="sample a prompt suite instead: imagen200, or a CSV or TSV file")
    add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the report; the same command resumes"
    )
    add_argument(
        "--metrics",
        type=Listed(Choice(*METRICS, what="metric")),
        default=["fid", "kid"],
        metavar="NAME,...",
        help=f"{', '.join(METRICS)} (default: fid,kid)",
    )
    add_argument("--n", type=count, metavar="N", help="images to generate (default: 10000; per prompt of a suite: 1)")
    add_argument("--split", default="heldout", metavar="NAME", help="heldout (default) or train")
    add_argument("--reference", type=count, metavar="N", help="real images (default: all of the split, 50000 at most)")
    add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the first image (default: 0)")
    add_argument("--guidance", type=Listed(float), metavar="W,...", help="guidance scale, or one per stage")
    add_argument("--steps", type=Listed(count), metavar="N,...", help="sampler steps, or one number per stage")
    add_argument("--sampler", type=Listed(str), metavar="NAME,...", help="sampler, or one per stage")
    add_argument("--fast", action="store_true", help="sample in few steps, if the cascade has settings for it")
    add_argument("--stages", type=count, metavar="K", help="stop after the K-th stage, and compare at its resolution")
    add_argument("--batch-size", type=count, default=32, metavar="N", help="images per batch (default: 32)")
    add_argument("--save-images", type=whole, default=64, metavar="N", help="images to save (default: 64; 0: none)")
    add_argument(
        "--inputs",
        type=Choice("generated", "true", what="kind of input"),
        default="generated",
        metavar="KIND",
        help="`true`: run only the last stage, on downsampled real images (default: generated)",
    )
    add_argument(
        "--sweep",
        type=swept,
        metavar="NAME=V,...",
        help=f"evaluate with each value of a setting of the last stage: {', '.join(SWEPT)}",
    )
    add_argument("--gap", action="store_true", help="evaluate each stage, on generated and on true inputs")
    for name in WEIGHTS:
        where = "file" if name == "inception" else "name on the hub, or folder"
        add_argument(f"--{name}", metavar="WEIGHTS", help=f"{where} of the feature extractor `{name}`")
    add_precision(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> Result | None:
    from imagen.cascade import Cascade
    from imagen.cli.devices import choose_device
    from imagen.cli.sampling import one_or_each
    from imagen.evaluate.plots import load_figure
    from imagen.evaluate.report import write_report
    from imagen.evaluate.run import evaluate
    from imagen.evaluate.suite import read_suite, run_suite
    from imagen.evaluate.sweep import cascade_gap, sweep
    from imagen.precision import autocast_dtype, precision_name
    from imagen.torchrun import read_launch

    if (options.data is None) == (options.suite is None):
        raise UserError("give either --data (shards to compare with) or --suite (prompts)")
    if options.gap and (options.sweep is not None or options.inputs == "true"):
        raise UserError("--gap evaluates every stage on both kinds of input; leave --sweep and --inputs out")
    if options.fast and (options.gap or options.sweep is not None):
        raise UserError("--gap and --sweep vary the default settings: leave --fast out")
    if options.suite is not None and (options.gap or options.sweep is not None or options.inputs == "true"):
        raise UserError("--gap, --sweep and --inputs compare with shards; give --data in place of --suite")
    for option in COMPARISON if options.suite is not None else ():
        if getattr(options, option) != options.parser.get_default(option):
            raise UserError(f"--{option.replace('_', '-')} is for comparisons with shards; leave it out with --suite")
    if options.gap or options.sweep is not None:
        load_figure()  # raises the error for a missing package before anything is sampled
    items = [] if options.suite is None else read_suite(options.suite)
    rank, ranks, local = read_launch()
    device = choose_device(options.device)
    if device == "cuda" and ranks > 1:
        device = f"cuda:{local}"
    precision = precision_name(autocast_dtype(device, options.precision))
    cascade = Cascade.load(options.cascade, stages=options.stages, precision=precision)
    sampling: dict[str, Any] = {
        **{name: one_or_each(getattr(options, name)) for name in ("guidance", "steps", "sampler")},
        **{name: getattr(options, name) for name in ("seed", "stages", "batch_size", "fast")},
        "rank": rank,
        "ranks": ranks,
        "precision": precision,
        "device": device,
    }
    if options.suite is not None:
        scores = run_suite(cascade, items, options.out, n=options.n or 1, clip=options.clip, **sampling)
        return None if scores is None else Result(scores, partial(_show_suite, scores, options.out))
    given: dict[str, Any] = {
        **sampling,
        **{name: getattr(options, name) for name in ("metrics", "split", "reference", "save_images", "inputs")},
        "n": options.n or 10_000,
        "weights": {name: getattr(options, name) for name in WEIGHTS if getattr(options, name) is not None},
    }
    name, values = options.sweep or (None, [])
    if options.gap:
        del given["inputs"]
        rows = cascade_gap(cascade, options.data, options.out, **given)
    elif name is not None:
        rows = sweep(cascade, options.data, options.out, name, values, **given)
    else:
        report = evaluate(cascade, options.data, options.out, **given)
        rows = None if report is None else [report]
    if rows is None:  # of a rank that does not report
        return None
    page = write_report(options.out, rows, shlex.join(["imagen", *sys.argv[1:]]), swept=name)
    return Result(rows if options.gap or name is not None else rows[0], lambda: _show(rows, name, page))


def swept(text: str) -> tuple[str, list[Any]]:
    """Read NAME=V,V: numbers, or names of samplers."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise argparse.ArgumentTypeError(f"{text!r}: give a setting and its values, as in guidance=1,2,4")
    kind = {"sampler": str, "steps": int}.get(name, float)
    try:
        return name, [kind(value) for value in values.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: the values of {name} must be numbers") from None


def _show(rows: list[dict[str, Any]], name: str | None, page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    reference = rows[0]["reference"]
    title = f"{rows[0]['images']:,} images against {reference['images']:,} of {reference['split']}"
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    table = Table(name or "stage", *metrics, title=title, caption="(95 % intervals)")
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        cells = [_cell(row["metrics"][metric]) if metric in row["metrics"] else "" for metric in metrics]
        table.add_row(str(row[name]) if name else f"{row['resolution']}, {row['inputs']} inputs", *cells)
    console = Console(markup=False)
    console.print(table)
    for description in rows[0]["extractors"].values():
        console.print(description)
    console.print(f"report: {page}")


def _show_suite(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("category", "prompts", *(["CLIP score (95 % interval)"] if "clip" in report else []))
    for name, entry in report["categories"].items():
        table.add_row(name, str(entry["prompts"]), *([_cell(entry["clip"])] if "clip" in entry else []))
    console = Console(markup=False)
    console.print(table)
    console.print(f"sheets: {out / 'sheets'}")


def _cell(found: dict[str, float]) -> str:
    return f"{found['value']:.4g}\n({found['low']:.4g} to {found['high']:.4g})"


COMMAND = Command(
    name="evaluate",
    help="measure generated images against a data set: FID, KID, precision and recall, CLIP score",
    add=add,
    run=run,
    details="Samples images for the captions of a data set and compares them with the real images. Features are\n"
    "computed while sampling and stored in DIR, so that an interrupted evaluation resumes, on any number of ranks.\n\n"
    "  torchrun --nproc-per-node 8 --no-python -- imagen evaluate IF --data coco --n 30000 --out fid30k\n"
    "  imagen evaluate runs/base --data shards --n 5000 --out scores\n"
    "  imagen evaluate emoji --data emoji-shards --stages 2 --metrics fd_efficientnet,prdc --out scores\n"
    "  imagen evaluate emoji --suite imagen200 --out suite",
)
