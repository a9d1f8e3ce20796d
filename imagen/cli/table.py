"""The table of commands: `COMMAND` of every module in this package that has one."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from imagen.cli.command import Command

ORDER = (  # in --help; other commands come after these
    "demo",
    "data build",
    "data emoji",
    "data cifar10",
    "data encode",
    "data inspect",
    "data bench",
    "presets",
    "config",
    "plan",
    "train",
    "subject",
    "assemble",
    "convert deepfloyd",
    "convert diffusers",
    "export",
    "sample",
    "upscale",
    "serve",
    "evaluate",
    "evaluate-emoji",
    "prefer",
    "compare",
    "doctor",
    "completion",
)
GROUPS = {"data": "build and inspect training data", "convert": "convert weights from and to other libraries"}


def _found() -> Iterator[Command]:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        command = getattr(importlib.import_module(f"imagen.cli.{module.name}"), "COMMAND", None)
        if command is not None:
            yield command


def _place(command: Command) -> tuple[int, str]:
    return ORDER.index(command.name) if command.name in ORDER else len(ORDER), command.name


COMMANDS = tuple(sorted(_found(), key=_place))
