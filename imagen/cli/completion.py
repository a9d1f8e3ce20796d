"""`imagen completion`"""

import argparse
from collections.abc import Sequence
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

    from imagen.cli.parser import parsers
    from imagen.configtext import SUFFIXES
    from imagen.gpus import PLANNABLE
    from imagen.presets import PRESETS

    values = {"GPU": [*PLANNABLE, "cpu"]}
    known: dict[str, Any] = parsers()
    for parser in known.values():
        for action in parser._actions:
            if action.metavar == "PRESET":
                action.complete = _names_or_files("preset", list(PRESETS), SUFFIXES)
            else:
                _complete(action, values)
    print(shtab.complete(known[""], options.shell))


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


def _names_or_files(what: str, names: list[str], suffixes: Sequence[str]) -> dict[str, Any]:
    """Return shtab's `complete` attribute for arguments that are one of `names` or a file with one of `suffixes`.

    shtab completes either names or files. The functions here call its own, and add the names.
    """
    import shtab

    files: Any = shtab.glob(*(f"*{suffix}" for suffix in suffixes))
    function, words = f"_imagen_{what}_or_file_globs", " ".join(names)  # `_glob` in the name: bash ends folders with /
    bash = f'{function}() {{\n  compgen -W "{words}" -- $1\n  {files["bash"]} $1\n}}'
    zsh = f"{function}() {{\n  compadd -- {words}\n  {files['zsh']}\n}}"
    fish = f"function {function}\n  printf '%s\\n' {words}\n  {files['fish'].strip('()')}\nend"
    own = files["preamble"]
    preamble = {"bash": f"{own['bash']}\n{bash}", "zsh": zsh, "fish": f"{own['fish']}\n{fish}"}
    return {"bash": function, "zsh": function, "fish": f"({function})", "preamble": preamble}


COMMAND = Command(
    name="completion",
    help="print a completion script for a shell",
    add=add,
    run=run,
    details="Completes commands, options, names of presets and samplers, config files, and paths.\n\n"
    "  bash: imagen completion bash > ~/.local/share/bash-completion/completions/imagen\n"
    "  zsh:  imagen completion zsh > ~/.zfunc/_imagen      (with ~/.zfunc in fpath)\n"
    "  fish: imagen completion fish > ~/.config/fish/completions/imagen.fish",
    has_output=False,
)
