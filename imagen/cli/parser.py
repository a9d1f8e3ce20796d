"""Parse a command line into options."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from imagen.cli.command import Command, add_output
from imagen.cli.fields import split_fields
from imagen.cli.table import COMMANDS, GROUPS
from imagen.distribution import NAME
from imagen.errors import UserError, check_text, suggest
from imagen.version import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError for invalid arguments."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        # Values that start with a minus: argparse accepts -1 but not -5:5 or -1e3. No option starts like this.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def options(self) -> list[str]:
        """Return the names of the options, such as `--out`."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def refuse(self, argument: str) -> NoReturn:
        """Raise UserError for an unknown argument, with the nearest option."""
        hint = suggest(argument.partition("=")[0], self.options()) if argument.startswith("-") else ""
        raise UserError(f"unknown argument {argument!r}{hint} (see `{self.prog} --help`)")

    def check_options(self, words: Sequence[str]) -> None:
        """Raise UserError for the first unknown `--option`; argparse would report a missing argument first."""
        for word in words[: words.index("--")] if "--" in words else words:
            if re.fullmatch(r"--[\w-]+(=.*)?", word, re.DOTALL) and word.partition("=")[0] not in self.options():
                self.refuse(word)


class Version(argparse.Action):
    """Print the versions that a bug report needs. Imports torch only when the option is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import platform

        import torch

        from imagen.devices import default_device
        from imagen.precision import autocast_dtype, precision_name

        device = default_device()
        precision = precision_name(autocast_dtype(device))
        where = f"{device}, {torch.backends.cpu.get_cpu_capability()}, {precision}"
        print(f"{NAME} {__version__} (torch {torch.__version__}, Python {platform.python_version()}; {where})")
        parser.exit()


def parsers(commands: Sequence[Command] = COMMANDS) -> dict[str, Parser]:
    """Return the parsers of `commands` and their groups by name: "sample", "data", "data build"; "": the top level."""
    top = Parser(prog="imagen", description="Text-to-image diffusion cascades in pixel space (arXiv 2205.11487).")
    top.add_argument("--version", action=Version, nargs=0, help="show the versions of imagen and torch, and exit")
    found, children = {"": top}, {"": top.add_subparsers(metavar="COMMAND")}
    for command in commands:
        group, _, name = command.name.rpartition(" ")
        if group not in children:
            found[group] = children[""].add_parser(group, help=GROUPS[group], description=_sentence(GROUPS[group]))
            children[group] = found[group].add_subparsers(metavar="ACTION")
        sub = children[group].add_parser(
            name, help=command.help, description=_sentence(command.help), epilog=command.details
        )
        command.add(sub)
        if command.has_output:
            add_output(sub)
        sub.set_defaults(run=command.run, command=command.name, parser=sub)
        found[command.name] = sub
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; return its options, with the function that runs the command as `run`.

    The result also has the `command`'s name, its `parser` and, if config fields can be set, `fields`: a list of
    alternating field names and values. Raises UserError, with the nearest name, for invalid arguments; prints and exits
    for `--help` and `--version`.
    """
    for argument in arguments:
        check_text("the argument", argument)
    name, words = "", list(arguments)
    names = {*GROUPS, *(command.name for command in COMMANDS)}
    while words and f"{name} {words[0]}".strip() in names:
        name = f"{name} {words.pop(0)}".strip()
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        known = parsers()
        others = [other.removeprefix(name).strip() for other in known if other.startswith(name)]
        _no_command(known[name], words, others)
    parser = parsers([command])[name]  # those of all commands would take longer than many a command
    fields: list[str] = []
    if command.has_fields:
        fields, words = split_fields(words, parser.options())
    parser.check_options(words)
    # Intermixed: prompts may come before, between and after options.
    options, rest = parser.parse_known_intermixed_args(words)
    if command.has_fields:
        options.fields = [*fields, *rest]
    elif rest:
        parser.refuse(rest[0])
    return options


def _no_command(parser: Parser, words: Sequence[str], known: Sequence[str]) -> NoReturn:
    """Print the help or the version, or raise UserError, where a command line names no command."""
    if not words:
        parser.print_help()
        raise UserError(f"no command given (see `{parser.prog} --help`)")
    if words[0] in parser.options():
        parser.parse_args(words[:1])
    if words[0].startswith("-"):
        parser.refuse(words[0])
    choices = [name for name in known if name and " " not in name]
    hint = suggest(words[0], choices) or "; choose " + ", ".join(choices)
    raise UserError(f"unknown command {words[0]!r}{hint} (see `{parser.prog} --help`)")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
