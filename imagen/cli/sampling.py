"""Define the options that `imagen sample` and `imagen upscale` share, and build the request from them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.cli.command import add_device, add_int8_text, add_precision
from imagen.cli.output import Result, counted, lines
from imagen.cli.values import Choice, Listed, count, each, interval, lora_file, number, sampler_options, whole
from imagen.diffusion.samplers.registry import sampler_names
from imagen.errors import UserError
from imagen.torchrun import read_launch

if TYPE_CHECKING:
    from imagen.cascade import Cascade

# Options with one value for all stages, or one for each, that are fields of the request.
PER_STAGE = (
    *("steps", "guidance", "guidance_interval", "guidance_rescale", "low_res_noise", "sampler", "spacing"),
    *("damping", "tile", "micro_batch"),
)

SAMPLER_ARGUMENTS = ("eta", "variance", "gamma")  # sampler options with an argument of their own in Python
COMPILED_IMAGES = 64  # per process: from this number on, compiling is on by default on an NVIDIA GPU

UPSAMPLING = ("tile", "low_res_noise")  # have an effect in super-resolution stages only

LORA = "apply a LoRA file with weight W (default: 1); FILE#256:W adapts the stage of 256 pixels (repeatable)"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the images")
    add("--seed", type=whole, default=0, metavar="N", help="seed of a prompt's first image (default: 0)")
    add("--n", type=count, default=1, metavar="N", help="images per prompt: seeds N, N + 1, ... (default: 1)")
    add("--stages", type=whole, metavar="K", help="stop after the K-th stage")
    add("--steps", type=Listed(int), metavar="N,...", help="sampler steps: one value, or one per stage, as in 50,20")
    add("--fast", action="store_true", help="sample in few steps, if the cascade has settings for it")
    add("--guidance", type=Listed(float), metavar="W,...", help="guidance scale (1: none), for all stages or per stage")
    add("--guidance-interval", type=Listed(interval), metavar="A:B,...", help="log-SNR range of guidance, or `all`")
    add(
        "--guidance-rescale",
        type=Listed(float),
        metavar="F,...",
        help="how much to reduce the contrast of guidance (0 to 1)",
    )
    add("--low-res-noise", type=Listed(float), metavar="A,...", help="conditioning augmentation level (0 to 1)")
    sampler = Choice(*sampler_names(), what="sampler")
    names = ", ".join(sampler.names)
    add("--sampler", type=Listed(sampler), metavar="NAME,...", help=f"{names}: one, or one per stage")
    spacing = Choice("time", "logsnr", "auto", what="spacing")
    add("--spacing", type=Listed(spacing), metavar="NAME,...", help="steps uniform in `time` or `logsnr`, or `auto`")
    add("--damping", type=Listed(float), metavar="D,...", help="remove noise 1 + D times as fast, for clean outlines")
    add(
        "--sampler-options",
        type=sampler_options,
        default={},
        metavar="NAME=V,...",
        help="options of the sampler, as in eta=0.5, for all stages that run",
    )
    add(
        "--tile",
        type=Listed(each(count)),
        metavar="N,...",
        help="process tiles of N pixels in super-resolution stages, to save memory",
    )
    add("--batch-size", type=count, default=8, metavar="N", help="images per batch (default: 8)")
    add("--lora", type=lora_file, action="append", default=[], metavar="FILE:W", help=LORA)
    add("--micro-batch", "--rows", type=Listed(count), metavar="N,...", help="images per evaluation of a stage's U-Net")
    add(
        "--vram",
        type=number,
        metavar="GIB",
        help="limit device memory by smaller micro-batches, offloading and tiles",
    )
    add_int8_text(parser)
    add_precision(parser)
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the sampler's steps: takes minutes at first, then runs faster (default: on NVIDIA GPUs, from "
        f"{COMPILED_IMAGES} images)",
    )
    add_device(parser)


def prepare(options: argparse.Namespace, inputs: int = 1) -> tuple["Cascade", dict[str, Any]]:
    """Load the cascade; return it with the arguments of both commands' requests.

    inputs: prompts, or images to upsample; each gives `options.n` images.
    """
    from imagen.cascade import Cascade
    from imagen.cli.devices import choose_device
    from imagen.lora import adapter_name
    from imagen.models.compiling import cache_folder
    from imagen.precision import autocast_dtype, precision_name

    rank, ranks, local = read_launch()
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
    if all(stage.config.low_resolution is None for stage in cascade.stages):
        for name in UPSAMPLING:
            if getattr(options, name) is not None:
                raise UserError(f"omit --{name.replace('_', '-')}: no super-resolution stage of {options.cascade} runs")
    weights: dict[str, float] = {}
    for lora in options.lora:
        name = cascade.unused_name(adapter_name(lora.path))
        weights[cascade.load_lora(lora.path, name=name, resolution=lora.resolution)] = (
            1.0 if lora.weight is None else lora.weight
        )
    if compiles(device, options.compile, inputs * options.n // ranks):
        cascade.compile(**({"mode": "reduce-overhead"} if device.startswith("cuda") else {}))
        if rank == 0:
            print(f"compiling each stage in its first step: minutes, or seconds if its kernels are in {cache_folder()}")
    return cascade, {
        **{name: one_or_each(getattr(options, name)) for name in PER_STAGE},
        **sampler_request(options.sampler_options),
        "fast": options.fast,
        "n": options.n,
        "stages": options.stages,
        "batch_size": options.batch_size,
        "lora": weights,
        "vram": options.vram,
        "precision": precision,
        "device": device,
        "rank": rank,
        "ranks": ranks,
        "progress": rank == 0,
    }


def sampler_request(options: dict[str, float | str]) -> dict[str, Any]:
    """Return what a request is given for sampler options: arguments of their own, or entries of `sampler_options`."""
    named = {name: value for name, value in options.items() if name in SAMPLER_ARGUMENTS}
    others = {name: value for name, value in options.items() if name not in SAMPLER_ARGUMENTS}
    return {**named, "sampler_options": others} if others else named


def compiles(device: str, setting: bool | None, images: int) -> bool:
    """Return whether to compile the sampler steps of a process that samples this number of images."""
    from imagen.models.compiling import should_compile

    return should_compile(device, False if setting is None and images < COMPILED_IMAGES else setting)


def one_or_each(values: list[Any] | None) -> Any:
    """Return the value of a list of one, for all stages; else the list, with one value per stage."""
    return values[0] if values is not None and len(values) == 1 else values


def written(paths: list[Path], out: Path, rank: int = 0) -> Result | None:
    """Return the first rank's report of the images; None on other ranks.

    Waits for no other rank, which may have failed: the rank that ends last writes the sheet.
    """
    if rank != 0:
        return None
    sheet = out / "sheet.png"
    document = {"out": str(out), "images": [str(path) for path in paths], "sheet": str(sheet)}
    if (there := sum(path.exists() for path in paths)) < len(paths):
        text = f"{there} of {len(paths)} images in {out}; other processes write the rest, and the last one {sheet}"
    else:
        text = f"{counted(len(paths), 'image')} in {out}; see {sheet}"
    return lines(document, text)
