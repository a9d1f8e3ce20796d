"""Config fields on the command line: `imagen train PRESET --optim.lr 2e-4`."""

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from imagen.errors import UserError

if TYPE_CHECKING:
    from imagen.train.experiment import Experiment

HELP = """\
PRESET is a name, or a config file of your own: `imagen config PRESET --write my.toml` writes one to start from.
Every config field can be set, as JSON or plain text; `imagen config PRESET` shows all fields, and
`imagen config PRESET --explain lr` their meaning:
  --train.batch_size 64 --optim.lr=2e-4 --optim.betas '[0.9, 0.99]' --stage.unet.levels.0.channels 96
"""


PRESET_HELP = "a preset (see `imagen presets`), or a config file: my.toml, .json or .yaml"
# The fields of an Experiment.
SECTIONS = ("name", "stage", "text", "data", "optim", "train", "parallel", "lora", "distill")


def is_field(word: str) -> bool:
    """Return whether a word of a command line names a field: `--optim.lr` or `--text`, with or without `=VALUE`."""
    path = word.removeprefix("--").partition("=")[0]
    return word.startswith("--") and (path in SECTIONS or bool(re.match(r"[\w-]+\.", path)))


def split_fields(arguments: Sequence[str], options: Collection[str]) -> tuple[list[str], list[str]]:
    """Separate fields, each followed by its value, from the words that argparse reads.

    options: the command's own options, which take precedence: `--data SHARDS` of `imagen train` is not a field.
    """
    fields, rest, queue = list[str](), list[str](), list(arguments)
    while queue:
        word = queue.pop(0)
        if not is_field(word) or word.partition("=")[0] in options:
            rest.append(word)
            continue
        fields.append(word)
        if "=" not in word and queue:
            fields.append(queue.pop(0))
    return fields, rest


def experiment(options: argparse.Namespace) -> "Experiment":
    """Return the preset or config file of a command with its fields set, before `check`.

    With `--init`, or a preset for fine-tuning, the stage is that of a cascade. Raises UserError for an unknown preset,
    field or cascade, with the nearest name, for a value of the wrong type, for what is wrong in the file, and for what
    does not fit the cascade.
    """
    from imagen.presets import preset
    from imagen.presets.file import changed_model, is_file, read_experiment
    from imagen.train.experiment import Experiment, override

    name = options.preset
    chosen = read_experiment(name) if is_file(name) else preset(name)
    source = getattr(options, "init", None) or (None if chosen.init is None else chosen.init.source)
    if source is None:
        if getattr(options, "init_partial", False):
            raise UserError("--init-partial needs --init CASCADE")
        return override(chosen, options.fields)
    from imagen.configtext import merge
    from imagen.jsonconfig import from_json, to_json
    from imagen.torchrun import read_launch
    from imagen.train.finetune import check_changes, start_from

    partial = getattr(options, "init_partial", False) or (chosen.init is not None and chosen.init.partial)
    started = start_from(chosen, source, partial=partial, run=getattr(options, "out", None))
    found = started
    if is_file(name):
        found = from_json(Experiment, merge(to_json(started), changed_model(name, source)), name)
    found = override(found, options.fields)
    for note in check_changes(started, found):
        if read_launch()[0] == 0:
            print(note, file=sys.stderr)  # stdout is the result, such as the JSON of `imagen config`
    return found


def add_init(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "fine-tune this stage of a cascade: a folder, a run or `emoji`, with #RESOLUTION if it has several"
    add("--init", metavar="CASCADE", help=text)
    add("--init-partial", action="store_true", help="load the weights that fit, and list those that are new")
