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
        "--data", type=Path, required=True, metavar="SHARDS", help="folder or URL of shards, made by `imagen data`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, new or to resume")
    parser.add_argument("--minutes", type=minutes, metavar="M", help="write a checkpoint and stop after M minutes")
    parser.add_argument(
        "--profile",
        type=span,
        metavar="FIRST:LAST",
        help="write a Chrome trace of these steps to RUN/profile, as in 10:13",
    )
    fields.add_init(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> Result | None:
    from imagen.cli.devices import choose_device
    from imagen.train.experiment import check

    experiment = fields.experiment(options)
    check(experiment)
    from imagen.train.ranks import process_group
    from imagen.train.run import train_run

    with process_group(choose_device(options.device) if options.device else None) as ranks:
        result = train_run(
            experiment, options.data, options.out, minutes=options.minutes, profile=options.profile, ranks=ranks
        )
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
    "  imagen train emoji_64 --data shards --out runs/wide --train.steps 40000 --optim.lr 5e-4\n"
    "  imagen train finetune_lora --init emoji#64 --data shards --out runs/style --lora.rank 8",
    has_fields=True,
)
