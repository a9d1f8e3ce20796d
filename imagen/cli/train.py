"""`imagen train`"""

import argparse
from pathlib import Path

from imagen.cli import fields
from imagen.cli.command import Command, add_device
from imagen.cli.output import Result, lines
from imagen.cli.values import minutes, span


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="see `imagen presets`")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="SHARDS[=WEIGHT]",
        help="folder or URL of shards, made by `imagen data`; repeat it to mix several: --data a=0.7 --data b=0.3",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, new or to resume")
    parser.add_argument("--minutes", type=minutes, metavar="M", help="write a checkpoint and stop after M minutes")
    parser.add_argument(
        "--profile",
        type=span,
        metavar="FIRST:LAST",
        help="write a Chrome trace of these steps to RUN/profile, as in 10:13",
    )
    add_device(parser)


def run(options: argparse.Namespace) -> Result | None:
    from imagen.cli.devices import choose_device
    from imagen.data.shards.mixture import parse_portion, portions_of
    from imagen.train.experiment import check

    experiment = fields.experiment(options)
    check(experiment)
    data = portions_of([parse_portion(text) for text in options.data])
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


COMMAND = Command(
    name="train",
    help="train a preset, or resume its run",
    add=add,
    run=run,
    details=f"{fields.HELP}\n"
    "Ctrl-C writes a checkpoint and stops; the same command resumes. RUN/metrics.jsonl, RUN/samples and\n"
    "`tensorboard --logdir RUN` show the progress. You can sample from RUN after its first export.\n\n"
    "  imagen train emoji_64 --data shards --out runs/base\n"
    "  imagen train emoji_64 --data shards=0.7 --data photos=0.3 --out runs/mixed\n"
    "  imagen train emoji_64 --data shards --out runs/wide --train.steps 40000 --optim.lr 5e-4",
    has_fields=True,
)
