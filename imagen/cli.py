"""The `imagen` command. Heavy imports are inside the commands, so that --help is instant."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imagen import __version__
from imagen.errors import UserError

if TYPE_CHECKING:
    from imagen.config import Experiment

OVERRIDES = "Any field of the config can be set: --train.batch_size 64 --optim.lr 2e-4 (see `imagen config PRESET`)."


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line and a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exit 0 on success, 2 on a user's mistake (one line on stderr), 1 otherwise."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines reach a log file as they are printed
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning at every fork otherwise
    try:
        options, rest = parser().parse_known_args(arguments)
        if rest and not getattr(options, "takes_overrides", False):
            raise UserError(f"unknown argument {rest[0]!r} (see `imagen {options.command} --help`)")
        if rest:
            options.overrides = rest
        options.run(options)
    except UserError as error:
        print(f"imagen: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("imagen: interrupted", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `imagen presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="imagen", description="Text-to-image diffusion cascades in pixel space (arXiv 2205.11487).")
    top.add_argument("--version", action="version", version=f"imagen {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Any, help: str, within: Any = commands, **defaults: Any) -> argparse.ArgumentParser:
        sub = within.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, **defaults)
        return sub

    sub = command("demo", demo, "train a small cascade on emoji, from nothing, and show what it draws")
    sub.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    sub.add_argument("--minutes", type=float, default=13.0, help="time to train for in this run (default: 13)")

    data = commands.add_parser("data", help="make and look after training data").add_subparsers(
        dest="action", metavar="ACTION", required=True
    )
    sub = command("emoji", data_emoji, "build the embedded data set: emoji on coloured backgrounds", within=data)
    sub.add_argument("--out", type=Path, required=True, metavar="SHARDS")
    sub.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024], help="sides of the masters, in pixels")
    sub.add_argument("--variants", type=int, default=1, help="pictures of each object and colour")
    sub.add_argument("--objects", type=int, help="only so many objects (default: all)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--encoder", default=None, help="text encoder of the sidecar (default: the embedded one)")
    sub = command("encode", data_encode, "write text embeddings beside the shards", within=data)
    sub.add_argument("shards", type=Path, metavar="SHARDS")
    add_text(sub)

    sub = command("presets", presets, "list the presets with their sizes")
    sub.add_argument("--json", action="store_true", help="print a list of objects")
    sub = command("config", config, f"print the resolved config of a preset. {OVERRIDES}", takes_overrides=True)
    sub.add_argument("preset", metavar="PRESET")

    sub = command("train", train, f"train a preset, or go on where it stopped. {OVERRIDES}", takes_overrides=True)
    sub.add_argument("preset", metavar="PRESET")
    sub.add_argument("--data", type=Path, required=True, metavar="SHARDS")
    sub.add_argument("--out", type=Path, required=True, metavar="RUN")
    sub.add_argument("--minutes", type=float, help="stop at a checkpoint after so long")
    sub.add_argument("--device", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")

    sub = command("assemble", assemble, "join the exports of training runs into one cascade, base first")
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    sub.add_argument("--out", type=Path, required=True, metavar="CASCADE")

    sub = command("sample", sample, "draw pictures from prompts")
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, or a training run")
    sub.add_argument("prompts", nargs="+", metavar="PROMPT")
    add_sampling(sub)
    sub.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the result, in pixels")

    sub = command("upscale", upscale, "enlarge pictures with the super-resolution stages alone")
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, or a training run")
    sub.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    sub.add_argument("--prompt", default="", help="what they show, if the stages read text")
    add_sampling(sub)
    return top


def add_text(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--encoder", help="a Hugging Face name or a local folder (default: the embedded one)")
    sub.add_argument("--revision", default="main", help="of the encoder")
    sub.add_argument("--max-tokens", type=int, default=128, help="longer captions are cut (default: 128)")
    sub.add_argument("--batch-size", type=int, default=64)


def add_sampling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="DIR")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--n", type=int, default=1, help="pictures of each prompt, with seeds SEED, SEED + 1, ...")
    sub.add_argument("--stages", type=int, help="stop after so many stages")
    each = "one value for all stages, or one for each"
    sub.add_argument("--steps", type=int, nargs="+", help=f"sampler steps; {each}")
    sub.add_argument("--guidance", type=float, nargs="+", help=f"guidance weight, 1 is none; {each}")
    sub.add_argument("--low-res-noise", type=float, nargs="+", help=f"conditioning noise in [0, 1]; {each}")
    sub.add_argument("--sampler", nargs="+", help=f"ddpm, ddim or dpmpp_2m; {each}")
    sub.add_argument("--batch-size", type=int, default=8, help="pictures at a time; does not change them")
    sub.add_argument("--device", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")


def demo(options: argparse.Namespace) -> None:
    from imagen.demo import run_demo

    run_demo(options.out, minutes=options.minutes)


def data_emoji(options: argparse.Namespace) -> None:
    from imagen.data.emoji import build_emoji
    from imagen.presets.emoji import MINILM

    built = build_emoji(
        options.out, options.sizes, variants=options.variants, seed=options.seed, limit_objects=options.objects
    )
    _encode(options.out, encoder=options.encoder or MINILM.encoder, max_tokens=MINILM.max_tokens)
    print(f"{options.out}: {built['samples']['train']} pictures to train on, {built['samples']['heldout']} held out")


def data_encode(options: argparse.Namespace) -> None:
    from imagen.models.text import EMBEDDED_ENCODER

    _encode(
        options.shards,
        encoder=options.encoder or EMBEDDED_ENCODER,
        revision=options.revision,
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
    )


def _encode(shards: Path, *, encoder: str, max_tokens: int, revision: str = "main", batch_size: int = 64) -> None:
    from imagen.data.encode import encode_shards
    from imagen.models.text import encoder_config, load_text_encoder

    config = encoder_config(encoder, revision=revision, max_tokens=max_tokens)
    encode_shards(shards, load_text_encoder(config, device=_device(None)), batch_size=batch_size)


def presets(options: argparse.Namespace) -> None:
    from imagen.presets import PRESETS
    from imagen.run import describe

    rows = [describe(function()) for function in PRESETS.values()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "parameters", "resolution", "GFLOP an image", caption="GFLOP: one forward")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        low = f"{row['low_resolution']} -> " if row["low_resolution"] else ""
        crop = f" (crop {row['side']})" if row["side"] != row["resolution"] else ""
        table.add_row(
            row["name"], f"{row['parameters'] / 1e6:,.1f}M", f"{low}{row['resolution']}", f"{row['gflop']:,.1f}{crop}"
        )
    Console().print(table)


def config(options: argparse.Namespace) -> None:
    from imagen.jsonconfig import to_json

    print(json.dumps(to_json(_experiment(options)), indent=2))


def train(options: argparse.Namespace) -> None:
    experiment = _experiment(options)
    from imagen.run import train_run

    train_run(experiment, options.data, options.out, minutes=options.minutes, device=_device(options.device))
    print(f"draw with it: imagen sample {options.out} PROMPT --out DIR")


def assemble(options: argparse.Namespace) -> None:
    from imagen.cascade import assemble

    assemble(options.runs, options.out)
    print(f"{options.out}: {len(options.runs)} runs joined; draw with it: imagen sample {options.out} PROMPT --out DIR")


def sample(options: argparse.Namespace) -> None:
    _write(options, options.prompts, size=tuple(options.size) if options.size else None)


def upscale(options: argparse.Namespace) -> None:
    from imagen.pictures import read_picture

    pictures = [read_picture(path) for path in options.pictures]
    _write(options, [options.prompt] * len(pictures), start=pictures)


def _write(options: argparse.Namespace, prompts: Sequence[str], **request: Any) -> None:
    from imagen.cascade import Cascade, write_samples

    paths = write_samples(
        Cascade.load(options.cascade),
        prompts,
        options.out,
        seed=options.seed,
        n=options.n,
        stages=options.stages,
        steps=_one_or_each(options.steps),
        guidance=_one_or_each(options.guidance),
        low_res_noise=_one_or_each(options.low_res_noise),
        sampler=_one_or_each(options.sampler),
        batch_size=options.batch_size,
        device=_device(options.device),
        **request,
    )
    print(f"{len(paths)} pictures in {options.out}; see {options.out / 'sheet.png'}")


def _one_or_each(values: list[Any] | None) -> Any:
    return values[0] if values is not None and len(values) == 1 else values


def _experiment(options: argparse.Namespace) -> "Experiment":
    from imagen.config import override
    from imagen.presets import preset

    return override(preset(options.preset), getattr(options, "overrides", []))


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name
