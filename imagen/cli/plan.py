"""`imagen plan`"""

import argparse
import json
import math
from dataclasses import replace
from typing import Any

from imagen.cli import fields
from imagen.cli.command import Command
from imagen.cli.output import Result
from imagen.cli.values import count, number
from imagen.gpus import PLANNABLE

GIB = 2**30
KINDS = {
    "parameters": "this rank's share, float32",
    "gradients": "this rank's share, float32",
    "optimizer": "this rank's share, in the format of optim.state",
    "ema": "this rank's share of the EMAs",
    "teacher": "weights of the teacher, on every rank",
    "casts": "parameters in bfloat16",
    "communication": "gathered parameters, unsharded gradients, buffers",
    "activations": "of the forward pass, including the batch",
    "temporary": "gradients of activations, and others",
    "other": "",
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help=fields.PRESET_HELP)
    fields.add_init(parser)
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="GPUs in total (default: 1)")
    parser.add_argument(
        "--gpu",
        default="h100-80gb",
        metavar="GPU",
        help=f"{', '.join(PLANNABLE)}, cpu (default: h100-80gb)",
    )
    parser.add_argument(
        "--micro-batch", type=count, metavar="M", help="images per micro-batch (default: as many as fit)"
    )
    parser.add_argument("--mfu", type=number, default=0.4, metavar="F", help="assumed MFU (default: 0.4)")
    parser.add_argument(
        "--samples", type=count, default=1_000_000, metavar="N", help="size of the data set (default: 1000000)"
    )
    parser.add_argument(
        "--megapixels",
        type=number,
        metavar="F",
        help="size of a stored image, for the loading time; a camera image has 12 (default: that of the stage)",
    )
    parser.add_argument(
        "--data", metavar="SHARDS", help="count the samples of these shards, and measure here how fast they load"
    )


def run(options: argparse.Namespace) -> Result:
    from imagen.train.plan import Assumptions, plan

    experiment = fields.experiment(options)
    if options.micro_batch:
        experiment = replace(experiment, train=replace(experiment.train, micro_batch=options.micro_batch))
    assumptions = Assumptions(mfu=options.mfu, samples=options.samples, megapixels=options.megapixels)
    found = plan(experiment, options.gpus, options.gpu, assumptions, data=options.data)
    return Result(found, lambda: show(found))


def show(found: dict[str, Any]) -> None:
    """Print the plan; each line begins with counted, estimated, assumed or calibrated."""
    from rich.console import Console
    from rich.table import Table

    memory, disk, assumed, flop = found["memory"], found["disk"], found["assumed"], found["flop"]
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{found['preset']}: {found['parameters'] / 1e6:,.1f}M parameters on {found['gpus']} x {found['gpu']}, "
        f"{_spread(found)}, {found['precision']}"
    )
    console.print(
        f"train.batch_size {found['batch_size']} = {found['gpus']} x {found['micro_batches']} micro-batches of "
        f"{found['micro_batch']}; {_checkpointing(found)}"
    )
    table = Table("memory per GPU", "GiB", "content", title=f"at the peak, in the {memory['phase']} (counted)")
    table.columns[1].justify = "right"
    for kind, size in memory["at_peak"].items():
        if size >= GIB / 1000:
            table.add_row(kind, f"{size / GIB:.2f}", KINDS[kind])
    table.add_section()
    table.add_row("total", f"{memory['peak'] / GIB:.2f}", f"of {memory['usable'] / GIB:.1f} usable")
    console.print(table)
    console.print(f"counted: {memory['grid'] / GIB:.1f} GiB while a sample grid is made")

    useful = sum(count for phase, count in flop.items() if phase != "recomputation")
    console.print(
        f"counted: {useful / 1e12:,.1f} TFLOP per step and GPU"
        + (f", and {flop['recomputation'] / 1e12:,.1f} to recompute" if flop.get("recomputation") else "")
    )
    for row in found["traffic"]:
        if row["bytes"] >= 1e6:
            where = f"{row['collective']} over {row['ranks']} ({row['mesh']})"
            alone = f"{row['seconds'] * 1e3:,.1f} ms over the {row['over']} without overlap"
            console.print(f"counted: {row['bytes'] / 1e9:,.2f} GB per step sent by {where}; {alone}")
    if found["images_per_s"] is not None:
        console.print(
            f"estimated: {found['images_per_s']:,.0f} images/s, {found['step_s'] * 1e3:,.1f} ms per step, bound by "
            f"{found['bound_by']}, {found['days']:,.1f} days for train.steps, if the rest overlaps with it"
        )
        _show_loading(console, found)
    console.print(
        f"counted: a checkpoint takes {disk['checkpoint'] / 1e9:,.1f} GB, all stored checkpoints "
        f"{disk['checkpoints'] / 1e9:,.1f} GB"
    )
    console.print(
        f"estimated: {disk['samples']:,} samples take {disk['dataset'] / 1e9:,.0f} GB, at {disk['picture'] / 1e3:,.1f} "
        f"kB per image and {disk['embedding'] / 1e3:,.1f} kB per embedding"
    )
    console.print(
        "assumed: "
        + (f"--mfu {assumed['mfu']:g} of {assumed['tflops']:g} TFLOP/s; " if assumed["tflops"] else "")
        + f"{assumed['reserved']:.0%} of "
        f"{assumed['memory']:.1f} GiB for context, workspaces and gaps; machines of {assumed['gpus_a_machine']} GPUs, "
        f"{assumed['link']:g} GB/s between those, {assumed['network']:g} to others; {assumed['bytes_a_pixel']:g} bytes "
        f"per pixel, {assumed['caption_tokens']} tokens per caption"
    )
    rows = (f"{name} {entry['value']:g} ({entry['measured']})" for name, entry in found["calibrated"].items())
    console.print(f"calibrated: {', '.join(rows)}")


def _show_loading(console: Any, found: dict[str, Any]) -> None:
    loading = found["loading"]
    size = "" if loading["megapixels"] is None else f" of images of {loading['megapixels']:.2g} megapixels"
    console.print(
        f"{'measured' if loading['measured'] else 'calibrated'}: loader processes give {loading['images_per_s']:,.0f} "
        f"images/s, {loading['per_process']:,.0f} each{size}, with --data.workers {loading['workers']} per GPU and as "
        "many cores"
    )
    if found["bound_by"] == "loading":
        wanted = math.ceil(found["training_images_per_s"] / (loading["per_process"] * found["gpus"]))
        smaller = f", or with smaller images: imagen data build SOURCE --out SHARDS --sizes {_sizes(found)}"
        reduced = loading["megapixels"] is not None and loading["megapixels"] < 4 * found["resolution"] ** 2 / 1e6
        console.print(
            f"the GPUs wait for the loader; they could train {found['training_images_per_s']:,.0f} images/s, with "
            f"--data.workers {wanted}{'' if reduced else smaller}"
        )


def _sizes(found: dict[str, Any]) -> str:
    """Return the sizes that the stage reads, as `imagen data build` takes them."""
    return ",".join(str(side) for side in (found["low_resolution"], found["resolution"]) if side)


def _spread(found: dict[str, Any]) -> str:
    if found["gpus"] == 1:
        return "not distributed"
    if found["shard"] == 1:
        return "one replica per GPU"
    return "one replica" if found["shard"] == found["gpus"] else f"{found['gpus'] // found['shard']} replicas"


def _checkpointing(found: dict[str, Any]) -> str:
    fields = f"--parallel.checkpointing {found['checkpointing']}"
    if found["checkpoint_levels"]:
        fields += f" --parallel.checkpoint_levels {json.dumps(found['checkpoint_levels'], separators=(',', ':'))}"
    return f"{fields} --train.micro_batch {found['micro_batch']}"


COMMAND = Command(
    name="plan",
    help="estimate what training a preset needs: memory, time, traffic, disk",
    add=add,
    run=run,
    details=f"{fields.HELP}\n"
    "Does not train: a dry run of one step on tensors without data counts the memory and FLOP of one GPU. Chooses\n"
    "the largest micro-batch that fits, with the least recomputation.\n\n"
    "  imagen plan text2im_64_2b --gpus 256 --gpu h100-80gb --parallel.shard 8\n"
    "  imagen plan sr_256_600m --gpus 8 --gpu rtx-4090 --train.batch_size 256 --json",
    has_fields=True,
)
