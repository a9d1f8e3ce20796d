"""`imagen sample` and `imagen upscale`: options, help, and what they do. Heavy imports are inside."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.cli.prompts import Prompt, read_prompts
from imagen.cli.values import count, each, interval, listed, number, whole
from imagen.diffusion.samplers.registry import sampler_names
from imagen.errors import UserError
from imagen.torchrun import place

if TYPE_CHECKING:
    from imagen.cascade import Cascade

# Options that take one value for all stages, or one for each, with commas or spaces between.
LISTED = (
    *("--steps", "--guidance", "--guidance-interval", "--guidance-rescale", "--low-res-noise", "--sampler"),
    *("--spacing", "--damping", "--strength", "--tile", "--rows"),
)
FIELDS = (
    *("steps", "guidance", "guidance_interval", "guidance_rescale", "low_res_noise", "sampler", "spacing"),
    "damping",
)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# All else is read from the picture.
BESIDE_FROM = ("command", "cascade", "prompts", "again", "out", "device", "init", "mask", "start")


def add_sample(command: Callable[..., Any]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "sample",
        sample,
        "draw pictures from prompts",
        "Writes DIR/NNNN.png in the order of the prompts, and DIR/sheet.png; pictures that are there are kept:\n"
        "the same command goes on where it was stopped. Under torchrun each rank makes its share.\n"
        "A picture depends on its prompt and seed alone.\n\n"
        '  imagen sample cascade "a red apple" "an octopus on a blue background" --out pictures\n'
        "  imagen sample cascade --prompts prompts.jsonl --n 4 --seed 10 --steps 50,20 --guidance 4,1 --out pictures\n"
        '  imagen sample cascade "a red apple" --init photo.png --mask mask.png --out painted\n'
        "  imagen sample cascade --from pictures/0003.png --out again",
        rest="prompts",
    )
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, or a training run")
    sub.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw")
    sub.add_argument(
        "--prompts", type=Path, dest="file", metavar="FILE", help="a file: .txt (one a line), .jsonl, .json, .csv, .tsv"
    )
    sub.add_argument("--negative", default="", metavar="TEXT", help="what guidance leads away from (default: nothing)")
    _add(sub)
    sub.add_argument(
        "--vary", type=number, metavar="A", help="the N pictures are variations of the first: 0 (the same) to 1"
    )
    sub.add_argument("--size", type=count, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the result, in pixels")
    sub.add_argument("--init", metavar="FILE", help="a picture to begin with")
    sub.add_argument("--strength", type=listed(float), metavar="S,...", help="how much of it is drawn anew (0 to 1)")
    sub.add_argument("--mask", metavar="FILE", help="where the init picture is drawn anew (white) or kept (black)")
    sub.add_argument("--from", dest="again", metavar="FILE", help="make the picture in this file again")
    sub.add_argument("--start", metavar="FILE", help="with --from an enlarged picture: what was enlarged")


def add_upscale(command: Callable[..., Any]) -> None:
    """command: adds one, given its name, function, help and epilog."""
    sub = command(
        "upscale",
        upscale,
        "enlarge pictures with the super-resolution stages alone",
        "  imagen upscale cascade photo.png --out enlarged\n"
        "  imagen upscale cascade photos/*.jpg --scale 4 --tile 512 --out enlarged",
        rest="pictures",
    )
    sub.add_argument("cascade", type=Path, metavar="CASCADE", help="a cascade folder, or a training run")
    sub.add_argument("pictures", nargs="*", metavar="PICTURE", help="files, of any size")
    sub.add_argument("--prompt", default="", help="what they show, if the stages read text")
    sub.add_argument("--scale", type=count, metavar="N", help="enlarge so many times (default: to the last stage)")
    _add(sub)


def _add(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of the first picture of a prompt (default: 0)")
    sub.add_argument("--n", type=count, default=1, metavar="N", help="pictures of each prompt: seeds N, N + 1, ...")
    sub.add_argument("--stages", type=whole, metavar="K", help="stop after the K-th stage")
    one = "one value for all stages, or one for each, as in"
    sub.add_argument("--steps", type=listed(int), metavar="N,...", help=f"sampler steps: {one} 50,20")
    sub.add_argument("--guidance", type=listed(float), metavar="W,...", help="guidance weight (1: none), likewise")
    sub.add_argument(
        "--guidance-interval", type=listed(interval), metavar="A:B,...", help="log-SNR where it acts, or `all`"
    )
    sub.add_argument("--guidance-rescale", type=listed(float), metavar="F,...", help="less contrast from it (0 to 1)")
    sub.add_argument("--low-res-noise", type=listed(float), metavar="A,...", help="conditioning noise (0 to 1)")
    sub.add_argument("--sampler", type=listed(str), metavar="NAME,...", help=f"{', '.join(sampler_names())}; likewise")
    sub.add_argument(
        "--spacing", type=listed(str), metavar="NAME,...", help="steps even in `time`, in `logsnr`, or `auto`"
    )
    sub.add_argument(
        "--damping", type=listed(float), metavar="D,...", help="let noise fall 1 + D times as fast, for clean outlines"
    )
    sub.add_argument(
        "--tile", type=listed(each(count)), metavar="N,...", help="enlarge in pieces of this side, to save memory"
    )
    sub.add_argument("--batch-size", type=count, default=8, metavar="N", help="pictures at a time (default: 8)")
    sub.add_argument("--rows", type=listed(count), metavar="N,...", help="of these, in one call of a stage's network")
    sub.add_argument(
        "--vram", type=number, metavar="GIB", help="keep to so much device memory: fewer rows, stages by turns, tiles"
    )
    sub.add_argument("--int8-text", action="store_true", help="hold the text encoder's weights in 8 bits")
    sub.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="number format of the networks (default: auto, as the processor multiplies fastest)",
    )
    sub.add_argument("--compile", action="store_true", help="compile the networks: minutes first, then faster")
    sub.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1... (default: a GPU if there is one)")


def sample(options: argparse.Namespace) -> None:
    rows = [Prompt(prompt=prompt) for prompt in options.prompts]
    rows += [] if options.file is None else read_prompts(options.file)
    if options.again is not None:
        _refuse_beside_from(options, rows)
        _again(options)
        return
    if options.start is not None:
        raise UserError("--start goes with --from; to enlarge a picture, use `imagen upscale`")
    if not rows:
        raise UserError('no prompts: give some, or --prompts FILE ("" makes a picture without a prompt)')
    negatives = [options.negative if row.negative is None else row.negative for row in rows]
    from imagen.cascade import write_samples

    cascade, request = _prepared(options)
    paths = write_samples(
        cascade,
        [row.prompt for row in rows],
        options.out,
        seed=[options.seed if row.seed is None else row.seed for row in rows],
        negative=negatives,
        vary=options.vary,
        size=tuple(options.size) if options.size else None,
        init=_picture(options.init),
        mask=_picture(options.mask),
        strength=_one_or_each(options.strength),
        **request,
    )
    _say(len(paths), options.out, request["rank"])


def upscale(options: argparse.Namespace) -> None:
    if not options.pictures:
        raise UserError("no pictures to enlarge (see `imagen upscale --help`)")
    from imagen.cascade import write_upscaled

    cascade, request = _prepared(options)
    paths = write_upscaled(
        cascade, options.pictures, options.out, prompt=options.prompt, seed=options.seed, scale=options.scale, **request
    )
    _say(len(paths), options.out, request["rank"])


def _refuse_beside_from(options: argparse.Namespace, rows: list[Prompt]) -> None:
    if rows:
        raise UserError("--from takes its prompt from the picture; leave the others out")
    for name, value in vars(options).items():
        if name not in BESIDE_FROM and value != options.parser.get_default(name):
            raise UserError(f"--from takes all settings from the picture; leave --{name.replace('_', '-')} out")


def _again(options: argparse.Namespace) -> None:
    from imagen.cascade import read_provenance, regenerate_request, write_regenerated

    made = read_provenance(options.again)
    options.precision = made.precision
    options.int8_text = made.text is not None and made.text.get("int8") is True
    cascade, request = _prepared(options)
    start, init, mask = (_picture(file) for file in (options.start, options.init, options.mask))
    again, place = regenerate_request(
        cascade, options.again, start=start, init=init, mask=mask, device=request["device"]
    )
    write_regenerated(cascade, again, place, options.out)
    _say(1, options.out, 0)


def _prepared(options: argparse.Namespace) -> tuple["Cascade", dict[str, Any]]:
    """The cascade, and what both commands request."""
    from imagen.cascade import Cascade
    from imagen.cli.commands import choose_device
    from imagen.precision import autocast_dtype, precision_name

    rank, ranks, local = place()
    device = choose_device(options.device)
    if device == "cuda" and ranks > 1:
        device = f"cuda:{local}"
    precision = precision_name(autocast_dtype(device, options.precision))
    cascade = Cascade.load(
        options.cascade,
        stages=options.stages,
        precision=precision,
        int8_text=options.int8_text,
    )
    if options.compile:
        cascade.compile(**({"mode": "reduce-overhead"} if device.startswith("cuda") else {}))
    fields = {name: _one_or_each(getattr(options, name)) for name in FIELDS}
    return cascade, {
        **fields,
        "n": options.n,
        "stages": options.stages,
        "tile": _one_or_each(options.tile),
        "batch_size": options.batch_size,
        "micro_batch": _one_or_each(options.rows),
        "vram": options.vram,
        "precision": precision,
        "device": device,
        "rank": rank,
        "ranks": ranks,
        "progress": rank == 0,
    }


def _picture(file: str | None) -> Any:
    from imagen.pictures import read_picture

    return None if file is None else read_picture(file)


def _one_or_each(values: list[Any] | None) -> Any:
    return values[0] if values is not None and len(values) == 1 else values


def _say(pictures: int, out: Path, rank: int) -> None:
    if rank == 0:
        print(f"{pictures} picture{'' if pictures == 1 else 's'} in {out}; see {out / 'sheet.png'}")
