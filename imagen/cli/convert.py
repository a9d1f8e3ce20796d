"""`imagen convert`: options, help, and what it does. Heavy imports are inside."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(command: Callable[..., Any], add_device: Callable[[argparse.ArgumentParser], None]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "deepfloyd",
        deepfloyd,
        "make a cascade of DeepFloyd IF's weights",
        "PATH is a pipeline folder with unet/config.json, as `hf download DeepFloyd/IF-I-XL-v1.0` brings it, or\n"
        "one in IF's first format (config.yml, pytorch_model.bin): one a stage, base first. Its licence forbids\n"
        "commercial use, and removing its filters: see docs/howto/deepfloyd.md.\n\n"
        "  imagen convert deepfloyd IF-I-XL-v1.0 IF-II-L-v1.0 --out cascade",
        rest="paths",
    )
    sub.add_argument("paths", nargs="*", metavar="PATH", help="pipeline folders, base first")
    sub.add_argument("--out", type=Path, required=True, metavar="CASCADE", help="the folder to write")
    sub.add_argument(
        "--encoder", metavar="NAME", help="text encoder (default: the folders' own, else google/t5-v1_1-xxl)"
    )
    sub.add_argument(
        "--cleaning",
        choices=("lower", "caption"),
        default="lower",
        help="of prompts: lower case, or all that IF does to captions (default: lower)",
    )
    add_push(sub)
    add_device(sub)
    sub = command(
        "diffusers",
        diffusers,
        "write a cascade as folders that diffusers' IF pipelines load",
        "For stages whose structure these pipelines have; others are refused with the reason.\n\n"
        "  imagen convert diffusers cascade --out pipelines",
    )
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, or a training run")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="for DIR/stage-64, DIR/stage-256, ...")
    add_push(sub)


def add_push(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--push", metavar="ORG/NAME", help="upload it to the Hugging Face hub, too (private if new)")


def deepfloyd(options: argparse.Namespace) -> None:
    from imagen.cli.commands import choose_device
    from imagen.convert.deepfloyd import convert_deepfloyd

    stages = convert_deepfloyd(
        options.paths,
        options.out,
        encoder=options.encoder,
        cleaning=options.cleaning,
        device=choose_device(options.device),
    )
    names = " and ".join(str(stage.resolution) for stage in stages)
    print(f"{options.out}: stage {names}; draw with it: imagen sample {options.out} PROMPT --out DIR")
    print(
        "IF's licence allows non-commercial research only, and forbids going without its filters: "
        "docs/howto/deepfloyd.md"
    )
    push_cascade(options.out, options.push)


def diffusers(options: argparse.Namespace) -> None:
    from imagen.cascade.hub import push
    from imagen.convert.diffusers import convert_diffusers

    for folder in convert_diffusers(options.cascade, options.out):
        print(f"{folder}: README.md says how to load it")
        if options.push is not None:  # one repository a stage: a pipeline is loaded from the root of one
            print(push(folder, f"{options.push}-{folder.name.removeprefix('stage-')}", card=""))


def push_cascade(folder: Path, name: str | None) -> None:
    """Upload a cascade, if a name is given."""
    if name is None:
        return
    from imagen.cascade.card import cascade_card
    from imagen.cascade.hub import push
    from imagen.cascade.storage import read_manifest

    print(push(folder, name, cascade_card(read_manifest(folder), name)))
