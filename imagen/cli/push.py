"""`--push`: upload the output of a command to the Hugging Face hub."""

import argparse
from pathlib import Path


def add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="also upload the result to the Hugging Face hub (private if new)"
    )


def push_cascade(folder: Path, name: str | None) -> str | None:
    """Upload a cascade if a name is given; return its address."""
    if name is None:
        return None
    from imagen.cascade.card import cascade_card
    from imagen.cascade.hub import push
    from imagen.cascade.storage import read_manifest

    return push(folder, name, cascade_card(read_manifest(folder), name))
