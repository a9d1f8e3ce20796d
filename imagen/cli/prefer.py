"""`imagen prefer`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command
from imagen.cli.output import Result, lines
from imagen.cli.values import whole
from imagen.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="two folders of images of the same prompts",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE", help="folder of the page")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="seed of the order and the sides (default: 0)"
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="score this file of answers")


def run(options: argparse.Namespace) -> Result:
    from imagen.evaluate.preference import KEY, score_answers, write_preference_page
    from imagen.files import read_json

    if options.answers is not None:
        if options.folders:
            raise UserError("--answers scores an existing page: leave the folders out")
        found, key = score_answers(options.out, options.answers), read_json(options.out / KEY)
        share = found.share
        document = {**found._asdict(), "share": share._asdict(), "folders": [key["first"], key["second"]]}
        return lines(
            document,
            f"{key['first']}: preferred in {found.first} of {found.answers} pairs",
            f"{key['second']}: preferred in {found.second}; no difference in {found.ties}",
            f"share of {key['first']}, ties counted as half: {share.value:.1%} ({share.low:.1%} to {share.high:.1%})",
        )
    if len(options.folders) != 2:
        raise UserError(f"{len(options.folders)} folders; give the two folders to compare")
    first, second = options.folders
    count = write_preference_page(first, second, options.out, seed=options.seed)
    page = options.out / "index.html"
    return lines({"pairs": count, "page": str(page)}, f"{count:,} pairs: open {page} in a browser")


COMMAND = Command(
    name="prefer",
    help="compare two folders of images blindly, side by side, in a browser",
    add=add,
    run=run,
    details="The page shows pairs in random order and on random sides. Keys: left, right, down for no difference.\n\n"
    "  imagen prefer pictures-a pictures-b --out page\n"
    "  imagen prefer --out page --answers ~/Downloads/answers.json",
)
