"""`imagen completion`"""

import argparse
from typing import Any

from imagen.cli.command import Command
from imagen.cli.values import Choice

SHELLS = Choice("bash", "zsh", "fish")
# Metavars of arguments that are paths.
PATHS = ("FILE", "DIR", "IMAGE", "SHARDS", "SOURCE", "CASCADE", "RUN", "PATH")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", type=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(options: argparse.Namespace) -> None:
    import shtab

    from imagen.gpus import PLANNABLE
    from imagen.presets import PRESETS

    values = {"PRESET": list(PRESETS), "GPU": [*PLANNABLE, "cpu"]}
    for parser in options.parsers.values():
        for action in parser._actions:
            _complete(action, values)
    print(shtab.complete(options.parsers[""], options.shell))


def _complete(action: Any, values: dict[str, list[str]]) -> None:
    """Set the attributes of an argument that shtab reads, `choices` and `complete`. values: names by metavar."""
    import shtab

    names = getattr(action.type, "names", None)
    if names is not None:
        action.choices = names
    elif isinstance(action.metavar, str) and action.metavar in values:
        action.choices = values[action.metavar]
    elif isinstance(action.metavar, str) and action.metavar.split("=")[0].rstrip("[") in PATHS:
        action.complete = shtab.FILE


COMMAND = Command(
    name="completion",
    help="print a completion script for a shell",
    add=add,
    run=run,
    details="Completes commands, options, names of presets and samplers, and paths.\n\n"
    "  bash: imagen completion bash > ~/.local/share/bash-completion/completions/imagen\n"
    "  zsh:  imagen completion zsh > ~/.zfunc/_imagen      (with ~/.zfunc in fpath)\n"
    "  fish: imagen completion fish > ~/.config/fish/completions/imagen.fish",
    has_output=False,
)
