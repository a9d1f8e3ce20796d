"""`imagen demo`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command, add_device
from imagen.cli.output import Result
from imagen.cli.values import minutes


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="output folder (default: demo)")
    parser.add_argument(
        "--minutes", type=minutes, default=10.0, metavar="M", help="total time of this command (default: 10)"
    )
    add_device(parser)


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.devices import choose_device
    from imagen.emoji.demo import run_demo

    device = choose_device(options.device) if options.device else None
    summary = run_demo(options.out, minutes=options.minutes, device=device)
    return Result(summary, lambda: None)  # the demo prints its results itself


COMMAND = Command(
    name="demo",
    help="train a small cascade on emoji from scratch and show its samples",
    add=add,
    run=run,
    details="Measures this machine's speed, prints what it will do, and trains on as many objects as the time allows.\n"
    "Then open DIR/index.html. Run the command again to continue training.\n\n  imagen demo --minutes 30",
)
