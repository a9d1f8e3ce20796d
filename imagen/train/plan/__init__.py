"""What a training run needs, before there is a machine to run it on.

gpus.py         GPUs as data
calibration.py  what is measured, not counted
dry_run.py    the real model, optimizer and step on fake tensors, as one rank of many, by `imagen.accounting`
choice.py       micro-batch and checkpointing that fit
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from imagen.cascade.memory import step_bytes
from imagen.errors import UserError, check_number
from imagen.precision import autocast_dtype, precision_name
from imagen.train.experiment import Experiment, check
from imagen.train.grid import grid_micro_batch
from imagen.train.plan.calibration import CALIBRATION
from imagen.train.plan.choice import choose
from imagen.train.plan.dry_run import DryRun, TracedStep
from imagen.train.plan.gpus import GIB, GPUS_A_MACHINE, RESERVED, Gpu, find_gpu


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no count can tell."""

    mfu: float = CALIBRATION["mfu"].value  # part of the peak that is reached, while all that is counted is computed
    bytes_a_pixel: float = 0.4  # of a JPEG file
    bytes_a_sample: int = 2560  # the tar's headers and padding, the caption
    caption_tokens: int = 32  # mean, of 2 bytes a number
    samples: int = 1_000_000

    def check(self) -> None:
        check_number("--mfu", self.mfu, above=0, most=1)


def plan(experiment: Experiment, gpus: int, gpu: str, assumptions: Assumptions | None = None) -> dict[str, Any]:
    """A plan as JSON: sizes in bytes, times in seconds and days, FLOP and traffic of one rank and step.

    gpu: a name of `GPUS`, or "cpu". UserError if the experiment is not sound, or does not fit.
    """
    assumptions = assumptions or Assumptions()
    assumptions.check()
    card = find_gpu(gpu)
    check(experiment, gpus)
    on_gpu, precision = gpu != "cpu", experiment.train.precision
    dtype = autocast_dtype("cpu", "bf16" if precision == "auto" and on_gpu else precision)
    with DryRun(experiment, gpus, dtype=dtype, gpu=on_gpu) as dry_run:
        traced = choose(dry_run, card, gpu)
    grid = _grid(experiment, dry_run, dtype, on_gpu)
    if grid > card.usable:
        raise UserError(
            f"{experiment.name} trains, but its sample grid does not fit: {grid / GIB:.1f} GiB a GPU, {gpu} has "
            f"{card.usable / GIB:.1f} to give; more shards or a larger GPU would help"
        )
    stored, text, traffic = dry_run.stored, experiment.text, _traffic(traced, card, gpus)
    side = experiment.stage.resolution
    embedding = 0 if text is None else min(assumptions.caption_tokens, text.max_tokens) * text.width * 2
    picture = round(assumptions.bytes_a_pixel * side**2) + assumptions.bytes_a_sample
    keep = experiment.train.keep_checkpoints
    return {
        "preset": experiment.name,
        "parameters": dry_run.parameters,
        "gpus": gpus,
        "gpu": gpu,
        "shard": min(experiment.parallel.shard, gpus),
        "precision": precision_name(dtype),
        "batch_size": experiment.train.batch_size,
        "micro_batch": traced.micro_batch,
        "micro_batches": traced.micro_batches,
        "checkpointing": traced.parallel.checkpointing,
        "checkpoint_levels": list(traced.parallel.checkpoint_levels),
        "memory": {
            "usable": card.usable,
            "peak": traced.window.peak,
            "phase": traced.window.phase,
            "at_peak": traced.window.at_peak,
            "held": dry_run.held,
            "grid": grid,
        },
        "flop": traced.flops,
        **_times(experiment, traced, card if dtype is not None else replace(card, tflops=None), traffic, assumptions),
        "traffic": traffic,
        "disk": {
            "checkpoint": stored,
            "checkpoints": (keep + 1) * stored,  # one more while it is written
            "picture": picture,
            "embedding": embedding,
            "samples": assumptions.samples,
            "dataset": assumptions.samples * (picture + embedding),
        },
        "calibrated": {name: asdict(entry) for name, entry in CALIBRATION.items()},
        "assumed": {**asdict(assumptions), "reserved": RESERVED, "gpus_a_machine": GPUS_A_MACHINE, **asdict(card)},
    }


def _grid(experiment: Experiment, dry_run: DryRun, dtype: torch.dtype | None, on_gpu: bool) -> int:
    """Bytes of a GPU that makes the pictures on the way, beside all that training holds."""
    stage, text = experiment.stage, experiment.text
    side = stage.resolution
    step = step_bytes(
        *(stage, stage.sampling, (side, side), grid_micro_batch(side)),
        text_tokens=0 if text is None else text.max_tokens,
        dtype=dtype,
        gpu=on_gpu,
    )
    return step + sum(size for kind, size in dry_run.held.items() if kind != "gradients")


def _times(
    experiment: Experiment, traced: TracedStep, card: Gpu, traffic: list[dict[str, Any]], assumptions: Assumptions
) -> dict[str, Any]:
    """A step takes as long as computing, or as what is sent over links or over the network, whichever is longest."""
    if card.tflops is None:
        return {"step_s": None, "bound_by": None, "images_per_s": None, "days": None}
    seconds = {"computing": sum(traced.flops.values()) / (card.tflops * 1e12 * assumptions.mfu)}
    for row in traffic:
        seconds[row["over"]] = seconds.get(row["over"], 0.0) + row["seconds"]
    bound_by = max(seconds, key=lambda name: seconds[name])
    step = seconds[bound_by]
    return {
        "step_s": step,
        "bound_by": bound_by,
        "images_per_s": experiment.train.batch_size / step,
        "days": step * experiment.train.steps / 86400,
    }


def _traffic(traced: TracedStep, card: Gpu, gpus: int) -> list[dict[str, Any]]:
    """Bytes that a rank sends in a step, and how long that takes where nothing else is done meanwhile.

    Ranks that share a copy are neighbours: a group no larger than a machine is within one.
    """
    sizes = {"all": gpus, "shard": min(traced.parallel.shard, gpus)}
    rows = []
    for (collective, name), sent in sorted(traced.sent.items()):
        ranks = sizes.get(name, gpus // sizes["shard"])
        within = gpus <= GPUS_A_MACHINE or (name == "shard" and ranks <= GPUS_A_MACHINE)
        over, speed = ("links", card.link) if within else ("network", card.network)
        row = {"collective": collective, "mesh": name, "ranks": ranks, "over": over, "bytes": sent}
        rows.append({**row, "seconds": sent / 1e9 / speed})
    return rows
