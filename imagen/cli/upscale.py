"""`imagen upscale`"""

import argparse

from imagen.cli.command import Command, add_cascade
from imagen.cli.output import Result
from imagen.cli.sampling import add_sampling, prepare, written
from imagen.cli.values import count
from imagen.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    add_cascade(parser)
    parser.add_argument("pictures", nargs="*", metavar="IMAGE", help="image files of any size")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="prompt of all images, for stages that use text")
    parser.add_argument("--scale", type=count, metavar="N", help="upscaling factor (default: to the last stage)")
    add_sampling(parser)


def run(options: argparse.Namespace) -> Result | None:
    if not options.pictures:
        raise UserError("no images to upscale (see `imagen upscale --help`)")
    from imagen.cascade import write_upscaled

    cascade, request = prepare(options, len(options.pictures))
    paths = write_upscaled(
        cascade, options.pictures, options.out, prompt=options.prompt, seed=options.seed, scale=options.scale, **request
    )
    return written(paths, options.out, request["rank"])


COMMAND = Command(
    name="upscale",
    help="upscale images with the super-resolution stages",
    add=add,
    run=run,
    details="  imagen upscale cascade photo.png --out upscaled\n"
    "  imagen upscale cascade photos/*.jpg --scale 4 --tile 512 --out upscaled",
)
