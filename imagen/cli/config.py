"""`imagen config`"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cli import fields
from imagen.cli.command import Command
from imagen.cli.output import Result, counted, lines

if TYPE_CHECKING:
    from imagen.train.experiment import Experiment


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help=fields.PRESET_HELP)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write all fields to a new .toml, .yaml or .json, and explain each"
    )
    parser.add_argument("--explain", metavar="WORD", help="explain the fields whose names contain this word")


def run(options: argparse.Namespace) -> Result:
    from imagen.jsonconfig import to_json
    from imagen.train.experiment import check

    experiment = fields.experiment(options)
    check(experiment, world_size=None)
    if options.write is not None:
        return _write(experiment, options.write)
    if options.explain is not None:
        return _explain(experiment, options.explain)
    document = to_json(experiment)
    return lines(document, json.dumps(document, indent=2))


def _write(experiment: "Experiment", path: Path) -> Result:
    from imagen.configtext import SUFFIXES, to_text
    from imagen.errors import UserError
    from imagen.files import write_text

    if path.suffix not in SUFFIXES:
        raise UserError(f"--write {path}: config files end in {', '.join(SUFFIXES)}")
    text = to_text(experiment, path.suffix)
    if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
        raise UserError(f"--write {path}: it exists, and what you changed in it would be lost; choose another name")
    write_text(path, text)
    note = "; JSON has no comments, so .toml or .yaml would explain the fields" if path.suffix == ".json" else ""
    return lines(
        {"written": str(path)}, f"{path}: all fields of {experiment.name}{note}", f"train it: imagen train {path} ..."
    )


def _explain(experiment: "Experiment", word: str) -> Result:
    """Describe the fields whose paths contain `word`, with the experiment's values."""
    from imagen.errors import UserError, suggest
    from imagen.fielddocs import field_docs
    from imagen.train.experiment import Experiment

    docs = list(field_docs(Experiment))
    wanted = word.removeprefix("--").replace("-", "_")
    found = [doc for doc in docs if wanted in doc.path]
    if not found:
        raise UserError(f"no field is called {word!r}{suggest(wanted, {doc.path.rpartition('.')[2] for doc in docs})}")
    texts = [f"{doc.path} ({doc.kind}): {doc.explanation}" for doc in found]
    document = [{"field": doc.path, "type": doc.kind, "meaning": doc.explanation} for doc in found]
    return lines(document, *texts, f"{counted(len(found), 'field')}; values: imagen config {experiment.name}")


COMMAND = Command(
    name="config",
    help="print, write or explain the resolved config of a preset",
    add=add,
    run=run,
    details=f"{fields.HELP}\n"
    "  imagen config emoji_64 --train.batch_size 64\n"
    "  imagen config emoji_64 --write my.toml\n"
    "  imagen config my.toml\n"
    "  imagen config emoji_64 --explain lr",
    has_fields=True,
)
