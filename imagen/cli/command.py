"""Define a command of the command line, and options that several commands share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imagen.cli.output import Result
from imagen.cli.values import Choice

PRECISIONS = Choice("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command, such as `imagen sample`.

    name: as it is typed: "sample" or "data build".
    help: one line in lower case, for the list of commands.
    add: adds the options to the command's parser.
    run: runs the command and returns the result to print. Imports heavy packages itself.
    details: the end of `--help`; its last lines are an example.
    has_fields: whether config fields can be set, as in `--optim.lr 2e-4`.
    has_output: whether the command prints a result, and so takes `--json` and `--quiet`.
    """

    name: str
    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result | None]
    details: str
    has_fields: bool = False
    has_output: bool = True


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print only the result, as one JSON document")
    add_quiet(parser, "print only errors, and the document of --json if it is given")


def add_quiet(parser: argparse.ArgumentParser, help: str = "print only errors") -> None:
    parser.add_argument("--quiet", action="store_true", help=help)


def add_cascade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "cascade",
        type=Path,
        metavar="CASCADE",
        help="a cascade folder, a training run, `emoji` (packaged), or ORG/NAME on the Hugging Face hub",
    )


def add_out_cascade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="CASCADE", help="the folder to write")


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        type=PRECISIONS,
        default="auto",
        metavar="NAME",
        help="number format of the U-Nets: auto, fp32, bf16 or fp16 (default: auto, the fastest on this processor)",
    )


def add_int8_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--int8-text", action="store_true", help="store the text encoder's weights in 8 bits")
