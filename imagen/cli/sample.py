"""`imagen sample`"""

import argparse
from pathlib import Path
from typing import Any

from imagen.cli.command import Command, add_cascade
from imagen.cli.output import Result
from imagen.cli.prompts import Prompt, read_prompts
from imagen.cli.sampling import add_sampling, one_or_each, prepare, written
from imagen.cli.values import Listed, count, number
from imagen.errors import UserError

# Options that may be combined with --from; all others are read from the image.
BESIDE_FROM = (
    *("cascade", "prompts", "again", "out", "device", "init", "mask", "start", "lora"),
    *("json", "quiet"),
)


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to sample")
    parser.add_argument(
        "--prompts",
        type=Path,
        dest="file",
        metavar="FILE",
        help="read prompts from a file: .txt (one per line), .jsonl, .json, .csv or .tsv",
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="negative prompt (default: none)")
    add_sampling(parser)
    parser.add_argument(
        "--vary", type=number, metavar="A", help="make the N images variations of the first: 0 (the same) to 1"
    )
    parser.add_argument(
        "--size", type=count, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size of the result in pixels, as in 256 320"
    )
    parser.add_argument("--init", metavar="FILE", help="image to start from (image-to-image)")
    parser.add_argument(
        "--strength",
        type=Listed(float),
        metavar="S,...",
        help="share of the steps taken, 0 to 1 (default: 0.7, or 1 with --mask)",
    )
    parser.add_argument("--mask", metavar="FILE", help="where to regenerate the init image (white) or keep it (black)")
    parser.add_argument("--from", dest="again", metavar="FILE", help="regenerate the image in this file")
    parser.add_argument("--start", metavar="FILE", help="with --from an upsampled image: the image that was upsampled")


def run(options: argparse.Namespace) -> Result | None:
    prompts = [Prompt(prompt=prompt) for prompt in options.prompts]
    prompts += [] if options.file is None else read_prompts(options.file)
    if options.again is not None:
        _refuse_beside_from(options, prompts)
        return _again(options)
    if options.start is not None:
        raise UserError("--start requires --from; to upscale an image, use `imagen upscale`")
    if not prompts:
        raise UserError('no prompts: give at least one, or --prompts FILE ("" samples an image without a prompt)')
    if options.vary is not None and options.n == 1:
        raise UserError("--vary makes variations of a prompt's first image; give their number as well, as in --n 4")
    from imagen.cascade import write_samples

    cascade, request = prepare(options, len(prompts))
    paths = write_samples(
        cascade,
        [row.prompt for row in prompts],
        options.out,
        seed=[options.seed if row.seed is None else row.seed for row in prompts],
        negative=[options.negative if row.negative is None else row.negative for row in prompts],
        vary=options.vary,
        size=tuple(options.size) if options.size else None,
        init=_picture(options.init),
        mask=_picture(options.mask),
        strength=one_or_each(options.strength),
        **request,
    )
    return written(paths, options.out, request["rank"])


def _refuse_beside_from(options: argparse.Namespace, prompts: list[Prompt]) -> None:
    if prompts:
        raise UserError("--from takes the prompt from the image; omit other prompts")
    for name, value in vars(options).items():
        if name not in BESIDE_FROM and value != options.parser.get_default(name):
            raise UserError(f"--from takes all settings from the image; omit --{name.replace('_', '-')}")


def _again(options: argparse.Namespace) -> Result | None:
    from imagen.cascade import read_provenance, regenerate_request, write_regenerated

    made = read_provenance(options.again)
    options.precision = made.precision
    options.int8_text = made.text is not None and made.text.get("int8") is True
    cascade, request = prepare(options)
    start, init, mask = (_picture(file) for file in (options.start, options.init, options.mask))
    again, place = regenerate_request(
        cascade, options.again, start=start, init=init, mask=mask, device=request["device"]
    )
    return written([write_regenerated(cascade, again, place, options.out)], options.out)


def _picture(file: str | None) -> Any:
    from imagen.pictures import read_picture

    return None if file is None else read_picture(file)


COMMAND = Command(
    name="sample",
    help="sample images from prompts",
    add=add,
    run=run,
    details="Writes DIR/NNNN.png in the order of the prompts, and DIR/sheet.png. Existing images are not sampled\n"
    "again, so the same command resumes. Under torchrun each rank samples its share. An image depends only on its\n"
    "prompt, seed and settings, not on the other images.\n\n"
    '  imagen sample cascade "a red apple" "an octopus on a blue background" --out pictures\n'
    "  imagen sample cascade --prompts prompts.jsonl --n 4 --seed 10 --steps 50,20 --guidance 4,1 --out pictures\n"
    '  imagen sample cascade "a red apple" --init photo.png --mask mask.png --out inpainted\n'
    "  imagen sample cascade --from pictures/0003.png --out again",
)
