"""`imagen data emoji`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command
from imagen.cli.output import Result, lines
from imagen.cli.values import Listed, count, count_or_all, file_and_name, number, side, whole


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="the folder to build")
    parser.add_argument(
        "--sizes",
        type=Listed(side),
        nargs="+",
        default=[[64, 256, 1024]],
        metavar="N,...",
        help="image sizes to store, in pixels (default: 64,256,1024); spaces may stand for the commas",
    )
    parser.add_argument(
        "--variants", type=count, default=4, metavar="N", help="images per object and colour (default: 4)"
    )
    parser.add_argument(
        "--objects", type=count_or_all, default=96, metavar="N", help="number of objects, or `all` (default: 96)"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of sizes and positions (default: 0)")
    parser.add_argument(
        "--relations",
        type=number,
        default=0.0,
        metavar="F",
        help="share of images with two objects, one left or right of, above or below the other (default: 0)",
    )
    parser.add_argument(
        "--counts",
        type=number,
        default=0.0,
        metavar="F",
        help="share of images with two to four of one object (default: 0)",
    )
    parser.add_argument(
        "--iconify",
        type=file_and_name,
        action="append",
        default=[],
        metavar="FILE=STYLE",
        help="add drawings of another style, from an iconify JSON file; captions name the style",
    )
    parser.add_argument("--encoder", metavar="NAME", help="text encoder (default: the embedded one)")


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.encoding import encode
    from imagen.emoji.dataset import build_emoji
    from imagen.emoji.presets import MINILM
    from imagen.text.encoder import encoder_config

    # First, so that a mistake in the encoder's name is reported at once.
    text = encoder_config(options.encoder or MINILM.encoder, max_tokens=MINILM.max_tokens)
    built = build_emoji(
        options.out,
        [size for sizes in options.sizes for size in sizes],
        variants=options.variants,
        seed=options.seed,
        limit_objects=options.objects,
        relations=options.relations,
        counts=options.counts,
        styles=dict(options.iconify),
    )
    encode(options.out, text)
    samples = built["samples"]
    return lines(
        {"out": str(options.out), "samples": samples, "encoder": text.encoder},
        f"{options.out}: {samples['train']:,} training images, {samples['heldout']:,} held out",
        f"train on it: imagen train PRESET --data {options.out} --out RUN",
    )


COMMAND = Command(
    name="data emoji",
    help="build the embedded data set: emoji on coloured backgrounds",
    add=add,
    run=run,
    details="  imagen data emoji --out shards --sizes 64,256\n"
    "  imagen data emoji --out scenes --sizes 64,256 --relations 0.2 --counts 0.1 --iconify noto/icons.json=noto",
)
