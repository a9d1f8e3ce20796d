"""Commands, options and their help."""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from imagen.cli import commands, convert, data, evaluate, plan, sampling, serve
from imagen.cli.sampling import LISTED
from imagen.cli.values import count, count_or_all, file_and_name, minutes, number, processes, side, span, whole
from imagen.diffusion.samplers.registry import sampler_names
from imagen.distribution import NAME
from imagen.errors import UserError, check_text, suggest
from imagen.version import __version__

NUMBER = r"[-+]?[\d.]+(e[-+]?\d+)?"
VALUE = rf"{NUMBER}(:{NUMBER})?|all|none|time|logsnr"
OVERRIDES = """\
Any field of the config can be set, as JSON or plain text; `imagen config PRESET` shows them all:
  --train.batch_size 64 --optim.lr=2e-4 --optim.betas '[0.9, 0.99]' --stage.unet.levels.0.channels 96
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line and a UserError."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"(?:argument (--[\w-]+): )?invalid choice: '(.*)' \(choose from (.*)\)$", message):
            option, chosen, known = match[1], match[2], re.findall(r"[\w-]+", match[3])
            what = f"unknown command {chosen!r}" if option is None else f"{option} cannot be {chosen!r}"
            message = f"{what}{suggest(chosen, known) or '; choose ' + ', '.join(known)}"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, with the function that does it as `run`. UserError for what cannot be read."""
    for argument in arguments:
        check_text("the argument", argument)
    arguments, fields = _without_fields(_joined(arguments))
    options, rest = _parser().parse_known_args(arguments)
    if options.run is None:
        options.parser.print_help()
        raise UserError(f"no command given (see `{options.parser.prog} --help`)")
    if options.rest == "overrides":
        options.overrides = [*fields, *rest]
        return options
    for unknown in rest:
        if unknown.startswith("-") or options.rest is None:
            known = re.findall(r"--[\w-]+", options.parser.format_usage())
            hint = suggest(unknown.partition("=")[0], known)
            raise UserError(f"unknown argument {unknown!r}{hint} (see `{options.parser.prog} --help`)")
    if options.rest is not None:  # argparse takes positional arguments from one place only, not from between options
        getattr(options, options.rest).extend(rest)
    return options


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--steps 50 20` as `--steps 50,20`. With nargs="+" argparse would take the prompts behind it for values."""
    joined: list[str] = []
    for argument in arguments:
        value = argument in sampler_names() or re.fullmatch(VALUE, argument)
        if value and len(joined) > 1 and joined[-2] in LISTED:
            joined[-1] += f",{argument}"
        elif value and joined and joined[-1] in LISTED and argument[0] == "-":  # argparse would take it for an option
            joined[-1:] = [f"{joined[-1]}={argument}"]
        else:
            joined.append(argument)
    return joined


def _without_fields(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line and, apart, its `--a.b VALUE`: before the preset, argparse would take VALUE for it."""
    kept, fields = list(arguments[:1]), list[str]()
    queue = list(arguments[1:])
    if kept not in (["train"], ["config"], ["plan"]):
        return [*kept, *queue], fields
    while queue:
        if re.match(r"--[\w-]+\.", queue[0]):
            fields.append(queue.pop(0))
            if "=" not in fields[-1] and queue:
                fields.append(queue.pop(0))
        else:
            kept.append(queue.pop(0))
    return kept, fields


class Version(argparse.Action):
    """Prints what a report of a problem should begin with; torch is imported only if it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import platform

        import torch

        from imagen.devices import default_device
        from imagen.precision import autocast_dtype, precision_name

        device = default_device()
        precision = precision_name(autocast_dtype(device))
        where = f"{device}, {torch.backends.cpu.get_cpu_capability()}, {precision}"
        print(f"{NAME} {__version__} (torch {torch.__version__}, Python {platform.python_version()}; {where})")
        parser.exit()


def _parser() -> Parser:
    top = Parser(prog="imagen", description="Text-to-image diffusion cascades in pixel space (arXiv 2205.11487).")
    top.add_argument("--version", action=Version, nargs=0, help="show the versions of imagen and torch, and exit")
    top.set_defaults(run=None, parser=top)
    groups = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], None] | None,
        help: str,
        epilog: str = "",
        *,
        within: Any = groups,
        rest: str | None = None,
    ) -> Any:
        """rest: the option that takes what argparse leaves over."""
        description = help[0].upper() + help[1:] + "."
        sub = within.add_parser(name, help=help, description=description, epilog=epilog)
        sub.set_defaults(run=run, parser=sub, rest=rest)
        return sub

    sub = command(
        "demo",
        commands.demo,
        "train a small cascade on emoji, from nothing, and show what it draws",
        "It times this machine first, says what it is going to do, and learns as many objects as fit into the time.\n"
        "Run it again to train on. Then look at DIR/index.html.\n\n  imagen demo --minutes 30",
    )
    sub.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="for everything (default: demo)")
    sub.add_argument("--minutes", type=minutes, default=10.0, help="for everything this run does (default: 10)")
    add_device(sub)

    actions = command("data", None, "make and look after training data").add_subparsers(dest="action", metavar="ACTION")
    data.add_build(partial(command, within=actions))
    sub = command(
        "emoji",
        commands.data_emoji,
        "build the embedded data set: emoji on coloured backgrounds",
        "  imagen data emoji --out shards --sizes 64 256\n"
        "  imagen data emoji --out scenes --sizes 64 256 --relations 0.2 --counts 0.1 --iconify noto/icons.json=noto",
        within=actions,
    )
    sub.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="the folder to build")
    sub.add_argument(
        "--sizes",
        type=side,
        nargs="+",
        default=[64, 256, 1024],
        metavar="N",
        help="sides of the masters, in pixels (default: 64 256 1024)",
    )
    sub.add_argument("--variants", type=count, default=4, metavar="N", help="pictures of each pair (default: 4)")
    sub.add_argument("--objects", type=count_or_all, default=96, metavar="N", help="so many, or `all` (default: 96)")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of size and place (default: 0)")
    sub.add_argument(
        "--relations", type=number, default=0.0, metavar="F", help="share with two objects, left, right, above, below"
    )
    sub.add_argument("--counts", type=number, default=0.0, metavar="F", help="share with two to four of an object")
    sub.add_argument(
        "--iconify",
        type=file_and_name,
        action="append",
        default=[],
        metavar="FILE=STYLE",
        help="draw in a further style, too, from an iconify JSON file; captions name it",
    )
    sub.add_argument("--encoder", metavar="NAME", help="text encoder (default: the embedded one)")
    sub = command(
        "encode",
        commands.data_encode,
        "write text embeddings (and indexes) beside the shards",
        "May be stopped, or killed, and run again. SHARDS holds WebDataset tars, as img2dataset writes them.\n"
        "To use several GPUs or machines, start the command once for each: they share the shards among them,\n"
        "and each returns when all is encoded. Or let a Ray cluster do it: --engine ray.\n\n"
        "  imagen data encode shards --encoder google/t5-v1_1-xxl\n"
        "  imagen data encode /shared/shards --encoder google/t5-v1_1-xxl --engine ray --ray-address auto",
        within=actions,
    )
    sub.add_argument("shards", type=Path, metavar="SHARDS", help="the folder of the tars")
    sub.add_argument(
        "--encoder", metavar="NAME", help="a Hugging Face name or a local folder (default: the embedded one)"
    )
    sub.add_argument("--revision", default="main", metavar="NAME", help="of the encoder (default: main)")
    sub.add_argument(
        "--max-tokens", type=count, default=128, metavar="N", help="longer captions are cut (default: 128)"
    )
    sub.add_argument(
        "--batch-tokens",
        type=count,
        default=8192,
        metavar="N",
        help="tokens at a time, padding included (default: 8192)",
    )
    add_device(sub)
    data.add_engine(sub)
    sub.add_argument(
        "--workers",
        type=processes,
        metavar="N",
        help="with --engine ray: encoders (default: one for each GPU, or for each machine if there is none)",
    )

    data.add_inspect(partial(command, within=actions))
    sub = command(
        "bench",
        commands.data_bench,
        "show how fast shards load, and what the time goes into",
        "  imagen data bench shards --resolution 256 --low-resolution 64 --workers 4\n"
        "  imagen data bench https://example.org/shards --seconds 60",
        within=actions,
    )
    sub.add_argument("shards", metavar="SHARDS", help="a folder or a URL")
    sub.add_argument("--resolution", type=side, default=64, metavar="N", help="of the stage (default: 64)")
    sub.add_argument("--low-resolution", type=side, metavar="N", help="of the input of a super-resolution stage")
    sub.add_argument("--crop", type=count, metavar="N", help="side of random crops (default: none)")
    sub.add_argument("--full-decode", action="store_true", help="decode JPEGs at their full size")
    sub.add_argument("--seconds", type=minutes, default=10.0, metavar="S", help="for each of two parts (default: 10)")
    sub.add_argument("--workers", type=whole, default=2, metavar="N", help="processes of the second part (default: 2)")
    sub.add_argument("--json", action="store_true", help="print an object")

    sub = command("presets", commands.presets, "list the presets with their sizes")
    sub.add_argument("--json", action="store_true", help="print a list of objects")
    sub = command("config", commands.config, "print the resolved config of a preset", OVERRIDES, rest="overrides")
    sub.add_argument("preset", metavar="PRESET", help="see `imagen presets`")

    plan.add_plan(command, OVERRIDES)

    sub = command(
        "train",
        commands.train,
        "train a preset, or go on where it stopped",
        f"{OVERRIDES}\n"
        "Ctrl-C stops at a checkpoint; the same command goes on. RUN/metrics.jsonl, RUN/samples and\n"
        "`tensorboard --logdir RUN` show how it goes; RUN can be sampled from at any time.\n\n"
        "  imagen train emoji_64 --data shards --out runs/base\n"
        "  imagen train emoji_64 --data shards --out runs/wide --train.steps 40000 --optim.lr 5e-4",
        rest="overrides",
    )
    sub.add_argument("preset", metavar="PRESET", help="see `imagen presets`")
    sub.add_argument("--data", type=Path, required=True, metavar="SHARDS", help="made by `imagen data`")
    sub.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, new or to go on with")
    sub.add_argument("--minutes", type=minutes, help="stop at a checkpoint after so long")
    sub.add_argument(
        "--profile",
        type=span,
        metavar="FIRST:LAST",
        help="write a Chrome trace of these steps into RUN/profile, as in 10:13",
    )
    add_device(sub)

    sub = command(
        "assemble",
        commands.assemble,
        "join the exports of training runs into one cascade, base first",
        "  imagen assemble runs/base runs/sr --out cascade",
    )
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="training runs, or cascades")
    sub.add_argument("--out", type=Path, required=True, metavar="CASCADE", help="the folder to write")
    convert.add_push(sub)
    sub.add_argument("--half", action="store_true", help="store the weights in 16 bits")

    actions = command("convert", None, "weights of other libraries, in and out").add_subparsers(
        dest="action", metavar="ACTION"
    )
    convert.add(partial(command, within=actions), add_device)
    sub = command(
        "export",
        commands.export,
        "make a cascade of what a training run has kept",
        "RUN/export is made in training. This makes others, on one process however many trained: of an earlier\n"
        "checkpoint, or, from the snapshots in RUN/averages, of another average of the weights: of a decay of\n"
        "train.ema_decays, or, with train.ema_sigma_rels, of any length. Half of an average of sigma_rel 0.05 is of\n"
        "the last 4 % of the steps, of 0.10 of the last 8 %.\n\n"
        "  imagen export runs/base --step 20000 --out base-20000\n"
        "  imagen export runs/base --sigma-rel 0.08 --out base-0.08",
    )
    sub.add_argument("run_folder", type=Path, metavar="RUN", help="a training run")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--sigma-rel", type=number, metavar="S", help="length of the average, 0 to 0.288 of the run's")
    length.add_argument("--decay", type=number, metavar="D", help="an average that was kept")
    sub.add_argument("--step", type=count, help="of a checkpoint, or of a snapshot (default the last)")
    sub.add_argument("--out", type=Path, required=True, metavar="CASCADE", help="the folder to write")

    sampling.add_sample(command)
    sampling.add_upscale(command)
    serve.add_serve(command)

    evaluate.add_evaluate(command)
    evaluate.add_compare(command)
    return top


def add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")
