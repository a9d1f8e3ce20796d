"""`imagen convert deepfloyd`"""

import argparse

from imagen.cli.command import Command, add_device, add_out_cascade
from imagen.cli.output import Result, lines
from imagen.cli.push import add_push, push_cascade
from imagen.cli.values import Choice


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="pipeline folders, base first")
    add_out_cascade(parser)
    parser.add_argument(
        "--encoder", metavar="NAME", help="text encoder (default: the folders' own, else google/t5-v1_1-xxl)"
    )
    parser.add_argument(
        "--cleaning",
        type=Choice("lower", "caption"),
        default="lower",
        metavar="NAME",
        help="how to clean prompts: `lower` (lower case), or `caption` (as IF cleans captions) (default: lower)",
    )
    add_push(parser)
    add_device(parser)


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.devices import choose_device
    from imagen.convert.deepfloyd import convert_deepfloyd

    stages = convert_deepfloyd(
        options.paths,
        options.out,
        encoder=options.encoder,
        cleaning=options.cleaning,
        device=choose_device(options.device),
    )
    pushed = push_cascade(options.out, options.push)
    names = " and ".join(str(stage.resolution) for stage in stages)
    return lines(
        {"out": str(options.out), "stages": [stage.resolution for stage in stages], "pushed": pushed},
        f"{options.out}: stage {names}; sample from it: imagen sample {options.out} PROMPT --out DIR",
        "IF's licence allows non-commercial research only, and forbids removing its filters: docs/howto/deepfloyd.md",
        *([pushed] if pushed else []),
    )


COMMAND = Command(
    name="convert deepfloyd",
    help="convert DeepFloyd IF's weights to a cascade",
    add=add,
    run=run,
    details="Each PATH is the folder of one stage: a diffusers pipeline with unet/config.json, as created by\n"
    "`hf download DeepFloyd/IF-I-XL-v1.0`, or IF's original format (config.yml, pytorch_model.bin). IF's licence\n"
    "forbids commercial use and removing its filters: see docs/howto/deepfloyd.md.\n\n"
    "  imagen convert deepfloyd IF-I-XL-v1.0 IF-II-L-v1.0 --out cascade",
)
