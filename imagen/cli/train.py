"""`imagen train`"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cli import fields
from imagen.cli.command import Command, add_device
from imagen.cli.output import Result, lines
from imagen.cli.values import minutes, span

if TYPE_CHECKING:
    from imagen.data.shards.mixture import Data
    from imagen.train.experiment import Experiment


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help=fields.PRESET_HELP)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="SHARDS[=WEIGHT]",
        help="folder or URL of shards, made by `imagen data`; repeat it to mix several: --data a=0.7 --data b=0.3",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run, new or to resume")
    parser.add_argument("--minutes", type=minutes, metavar="M", help="write a checkpoint and stop after M minutes")
    parser.add_argument(
        "--profile",
        type=span,
        metavar="FIRST:LAST",
        help="write a Chrome trace of these steps to RUN/profile, as in 10:13",
    )
    fields.add_init(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="take a few real steps, show memory, time and the loader's rate, and exit; RUN is not written",
    )
    add_device(parser)


def run(options: argparse.Namespace) -> Result | None:
    from imagen.cli.devices import choose_device
    from imagen.data.shards.mixture import parse_portion, portions_of
    from imagen.torchrun import read_launch
    from imagen.train.experiment import check

    experiment = fields.experiment(options)
    check(experiment, read_launch().world_size)
    data = portions_of([parse_portion(text) for text in options.data])
    if options.dry_run:
        return _dry_run(options, experiment, data)
    if options.out is None:
        options.parser.error("the following arguments are required: --out")
    from imagen.train.ranks import process_group
    from imagen.train.run import train_run

    with process_group(choose_device(options.device) if options.device else None) as ranks:
        result = train_run(experiment, data, options.out, minutes=options.minutes, profile=options.profile, ranks=ranks)
    if not ranks.is_first:
        return None
    document = {
        "run": str(options.out),
        "step": result.step,
        "images": result.images,
        "finished": result.finished,
        "reason": result.reason,
    }
    if experiment.stage.low_resolution is None:
        return lines(document, f"sample from it: imagen sample {options.out} PROMPT --out DIR")
    return lines(document, f"upsample with it: imagen upscale {options.out} IMAGE --out DIR")


def _dry_run(options: argparse.Namespace, experiment: "Experiment", data: "Data") -> Result | None:
    """Measure the first steps of the run."""
    from dataclasses import asdict

    from imagen.cli.devices import choose_device
    from imagen.errors import UserError
    from imagen.train.console import duration
    from imagen.train.preview import preview
    from imagen.train.ranks import process_group

    for name in ("minutes", "profile"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} does not go with --dry-run, which takes a few steps only")
    with process_group(choose_device(options.device) if options.device else None) as ranks:
        found = preview(experiment, data, options.out, ranks=ranks)
    if not ranks.is_first:
        return None
    texts = [
        f"memory: {found.memory_gb:.1f} GB at the peak of training",
        f"time: {found.step_s:.2g} s per step, {found.images_per_s:,.1f} images/s; {found.first_step_s:.2g} s for the "
        "first step",
        f"loader: {found.loader_images_per_s:,.1f} images/s with --data.workers {experiment.data.workers}",
        f"total: about {duration(found.total_s)} for {found.steps_left:,} of {found.steps:,} steps, without "
        "validation, sample grids and checkpoints",
        f"loss: {found.loss:.4f} after these steps; nothing was written",
    ]
    if found.waits:
        texts.insert(
            3,
            "training waits for the loader: raise --data.workers if there are idle cores, or build shards of smaller "
            "images (imagen data build SOURCE --out SHARDS --sizes N)",
        )
    return lines({"dry_run": True, **asdict(found)}, *texts)


COMMAND = Command(
    name="train",
    help="train a preset, or resume its run",
    add=add,
    run=run,
    details=f"{fields.HELP}\n"
    "Ctrl-C writes a checkpoint and stops; the same command resumes. RUN/metrics.jsonl, RUN/samples and\n"
    "`tensorboard --logdir RUN` show the progress; --train.loggers '[\"wandb\"]' or '[\"mlflow\"]' logs\n"
    "there instead. You can sample from RUN after its first export.\n\n"
    "  imagen train emoji_64 --data shards --dry-run\n"
    "  imagen train emoji_64 --data shards --out runs/base\n"
    "  imagen train emoji_64 --data shards=0.7 --data photos=0.3 --out runs/mixed\n"
    "  imagen train my.toml --data shards --out runs/mine\n"
    "  imagen train emoji_64 --data shards --out runs/wide --train.steps 40000 --optim.lr 5e-4\n"
    "  imagen train finetune_lora --init emoji#64 --data shards --out runs/style --lora.rank 8",
    has_fields=True,
)
