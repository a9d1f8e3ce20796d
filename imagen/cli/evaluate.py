"""`imagen evaluate`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command, add_cascade, add_device, add_precision
from imagen.cli.output import Result
from imagen.cli.values import Choice, Listed, count, whole
from imagen.evaluate.metrics.table import METRICS

WEIGHTS = ("inception", "clip", "dinov2")


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    add_argument = parser.add_argument
    add_argument("--data", required=True, metavar="SHARDS", help="captions to sample, and images to compare with")
    add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report; rerunning continues")
    add_argument(
        "--metrics",
        type=Listed(Choice(*METRICS, what="metric")),
        default=["fid", "kid"],
        metavar="NAME,...",
        help=f"{', '.join(METRICS)} (default: fid,kid)",
    )
    add_argument("--n", type=count, default=10_000, metavar="N", help="images to generate (default: 10000)")
    add_argument("--split", default="heldout", metavar="NAME", help="heldout (default) or train")
    add_argument("--reference", type=count, metavar="N", help="real images (default: all of the split, 50000 at most)")
    add_argument("--seed", type=whole, default=0, metavar="N", help="of the first image (default: 0)")
    add_argument("--guidance", type=Listed(float), metavar="W,...", help="guidance scale, or one per stage")
    add_argument("--steps", type=Listed(count), metavar="N,...", help="sampler steps, or one number per stage")
    add_argument("--sampler", type=Listed(str), metavar="NAME,...", help="sampler, or one per stage")
    add_argument("--stages", type=count, metavar="K", help="stop after the K-th stage, and compare at its resolution")
    add_argument("--batch-size", type=count, default=32, metavar="N", help="images at a time (default: 32)")
    add_argument("--save-images", type=count, default=64, metavar="N", help="images to keep (default: 64)")
    for name in WEIGHTS:
        where = "file" if name == "inception" else "name on the hub, or folder"
        add_argument(f"--{name}", metavar="WEIGHTS", help=f"{where} of the feature extractor `{name}`")
    add_precision(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> Result | None:
    from imagen.cascade import Cascade
    from imagen.cli.devices import choose_device
    from imagen.cli.sampling import one_or_each
    from imagen.evaluate.run import evaluate
    from imagen.precision import autocast_dtype, precision_name
    from imagen.torchrun import read_launch

    rank, ranks, local = read_launch()
    device = choose_device(options.device)
    if device == "cuda" and ranks > 1:
        device = f"cuda:{local}"
    precision = precision_name(autocast_dtype(device, options.precision))
    cascade = Cascade.load(options.cascade, stages=options.stages, precision=precision)
    report = evaluate(
        cascade,
        options.data,
        options.out,
        metrics=options.metrics,
        n=options.n,
        split=options.split,
        reference=options.reference,
        weights={name: getattr(options, name) for name in WEIGHTS if getattr(options, name) is not None},
        seed=options.seed,
        save_images=options.save_images,
        rank=rank,
        ranks=ranks,
        guidance=one_or_each(options.guidance),
        steps=one_or_each(options.steps),
        sampler=one_or_each(options.sampler),
        stages=options.stages,
        batch_size=options.batch_size,
        precision=precision,
        device=device,
    )
    return None if report is None else Result(report, lambda: _show(report, options.out))


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    reference = report["reference"]
    title = f"{report['images']:,} images against {reference['images']:,} of {reference['split']}"
    table = Table("metric", "value", "95 % interval", title=title)
    for name, value in report["metrics"].items():
        interval = f"{value['low']:.4g} to {value['high']:.4g}" if "low" in value else ""
        table.add_row(name, f"{value['value']:.4g}", interval)
    console = Console(markup=False)
    console.print(table)
    for description in report["extractors"].values():
        console.print(description)
    console.print(f"report: {out / 'report.json'}")


COMMAND = Command(
    name="evaluate",
    help="measure generated images against a data set: FID, KID, precision and recall, CLIP score",
    add=add,
    run=run,
    details="Samples the captions of a data set and compares the images with the real ones. Features are computed\n"
    "while sampling and stored in DIR, so that an interrupted evaluation continues, on any number of ranks.\n\n"
    "  imagen evaluate runs/base --data shards --n 5000 --out scores\n"
    "  imagen evaluate emoji --data emoji-shards --stages 2 --metrics fd_efficientnet,prdc --out scores\n"
    "  torchrun --nproc-per-node 8 -m imagen evaluate pipeline --data coco --metrics fid,clip --n 30000 --out fid30k",
)
