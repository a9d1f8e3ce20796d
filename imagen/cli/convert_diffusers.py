"""`imagen convert diffusers`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command, add_cascade
from imagen.cli.output import Result, lines
from imagen.cli.push import add_push


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for DIR/stage-64, DIR/stage-256, ..."
    )
    add_push(parser)


def run(options: argparse.Namespace) -> Result:
    from imagen.cascade.hub import push
    from imagen.convert.diffusers import convert_diffusers

    texts, folders, pushed = list[str](), list[str](), list[str]()
    for folder in convert_diffusers(options.cascade, options.out):
        folders.append(str(folder))
        texts.append(f"{folder}: its README.md shows how to load it")
        if options.push is not None:  # one repository per stage: a pipeline is loaded from the root of one
            pushed.append(push(folder, f"{options.push}-{folder.name.removeprefix('stage-')}", card=""))
            texts.append(pushed[-1])
    return lines({"folders": folders, "pushed": pushed}, *texts)


COMMAND = Command(
    name="convert diffusers",
    help="write a cascade as folders that diffusers' IF pipelines load",
    add=add,
    run=run,
    details="For stages whose structure these pipelines support; others are refused with the reason.\n\n"
    "  imagen convert diffusers cascade --out pipelines",
)
