"""`imagen assemble`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command, add_out_cascade
from imagen.cli.output import Result, counted, lines
from imagen.cli.push import add_push, push_cascade
from imagen.cli.values import stage_steps


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="training runs, or cascades")
    add_out_cascade(parser)
    add_push(parser)
    parser.add_argument(
        "--fast",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="store the adapter of this run of `imagen train distill` for `imagen sample --fast` (repeatable)",
    )
    parser.add_argument(
        "--fast-steps",
        type=stage_steps,
        default={},
        metavar="STAGE=N,...",
        help="sampler steps with --fast of stages without such a run, as in 256=2,1024=2",
    )
    parser.add_argument("--half", action="store_true", help="store the weights in float16, at half the size")


def run(options: argparse.Namespace) -> Result:
    from imagen.cascade import assemble
    from imagen.cascade.fast import add_fast, check_fast

    check_fast(options.runs, options.fast, options.fast_steps)  # before anything is written
    assemble(options.runs, options.out)
    if options.fast or options.fast_steps:
        add_fast(options.out, options.fast, options.fast_steps)
    if options.half:
        from imagen.cascade.float16 import convert_to_float16

        convert_to_float16(options.out)
    pushed = push_cascade(options.out, options.push)
    return lines(
        {"out": str(options.out), "runs": [str(path) for path in options.runs], "pushed": pushed},
        f"{options.out}: {counted(len(options.runs), 'run')} joined; "
        f"sample from it: imagen sample {options.out} PROMPT --out DIR",
        *([pushed] if pushed else []),
    )


COMMAND = Command(
    name="assemble",
    help="join the exports of training runs into one cascade, base first",
    add=add,
    run=run,
    details="  imagen assemble runs/base runs/sr --out cascade\n"
    "  imagen assemble cascade --fast runs/distilled --fast-steps 256=2,1024=2 --out fast",
)
