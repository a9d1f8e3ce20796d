"""`imagen config`"""

import argparse
import json

from imagen.cli import fields
from imagen.cli.command import Command
from imagen.cli.output import Result, lines


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="see `imagen presets`")


def run(options: argparse.Namespace) -> Result:
    from imagen.jsonconfig import to_json
    from imagen.train.experiment import check

    experiment = fields.experiment(options)
    check(experiment)
    document = to_json(experiment)
    return lines(document, json.dumps(document, indent=2))


COMMAND = Command(
    name="config",
    help="print the resolved config of a preset, as JSON",
    add=add,
    run=run,
    details=f"{fields.HELP}\n  imagen config emoji_64 --train.batch_size 64",
    has_fields=True,
)
