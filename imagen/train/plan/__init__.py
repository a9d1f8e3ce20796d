"""Compute the memory, time, traffic and disk space of a training run without running it.

calibration.py  constants that cannot be counted
dry_run.py      one training step of one rank on fake tensors, counted by `imagen.accounting`
choice.py       the micro-batch and activation checkpointing that fit
loading.py      how fast images are loaded
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imagen.cascade.memory import step_bytes
from imagen.errors import UserError, check_number
from imagen.gpus import GIB, GPUS_PER_MACHINE, Gpu, find_gpu
from imagen.precision import autocast_dtype, precision_name
from imagen.train.experiment import Experiment, check
from imagen.train.plan.calibration import CALIBRATION, RESERVED, usable_bytes
from imagen.train.plan.choice import choose
from imagen.train.plan.dry_run import DryRun, TracedStep
from imagen.train.plan.loading import Loading, estimate_loading, measure_loading
from imagen.train.sampling import sampling_micro_batch
from imagen.train.shapes import within_buckets


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Values that a plan assumes because they cannot be counted."""

    mfu: float = CALIBRATION["mfu"].value  # share of the stated peak that training reaches, recomputation included
    bytes_a_pixel: float = 0.4  # bytes per pixel of a JPEG file
    bytes_a_sample: int = 2560  # tar headers, padding and caption
    caption_tokens: int = 32  # mean tokens per caption, stored as bfloat16
    samples: int = 1_000_000
    megapixels: float | None = None  # of a stored image; None: of one whose shorter side is the stage's resolution

    def check(self) -> None:
        check_number("--mfu", self.mfu, above=0, most=1)


def plan(
    experiment: Experiment,
    gpus: int,
    gpu: str,
    assumptions: Assumptions | None = None,
    *,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Return a plan as a JSON object: sizes in bytes, times in seconds and days, FLOP and traffic per rank and step.

    gpu: a name of `imagen.gpus.PLANNABLE`, or "cpu". data: shards to measure the loader with, on this machine; default:
    its rate is calculated. Raises UserError if the experiment is invalid or does not fit.
    """
    assumptions = assumptions or Assumptions()
    assumptions.check()
    card = find_gpu(gpu)
    usable = usable_bytes(card)
    check(experiment, gpus)
    experiment = replace(experiment, train=within_buckets(experiment.train, experiment.data))
    on_gpu, precision = gpu != "cpu", experiment.train.precision
    dtype = autocast_dtype("cpu", "bf16" if precision == "auto" and on_gpu else precision)
    if data is None:
        loading = estimate_loading(experiment, gpus, assumptions.megapixels)
    else:
        loading = measure_loading(experiment, gpus, data)
        assumptions = replace(assumptions, samples=loading.samples or assumptions.samples)
    with DryRun(experiment, gpus, dtype=dtype, gpu=on_gpu) as dry_run:
        traced = choose(dry_run, usable, gpu)
    grid = _grid(experiment, dry_run, dtype, on_gpu)
    if grid > usable:
        raise UserError(
            f"training of {experiment.name} fits, but its sample grid does not: it takes {grid / GIB:.1f} GiB per GPU, "
            f"and {gpu} has {usable / GIB:.1f} GiB usable; use more shards or a larger GPU"
        )
    stored, text, traffic = dry_run.stored, experiment.text, _traffic(traced, card, gpus)
    side = experiment.stage.resolution
    embedding = 0 if text is None else min(assumptions.caption_tokens, text.max_tokens) * text.width * 2
    pixels = side**2 if assumptions.megapixels is None else assumptions.megapixels * 1e6
    picture = round(assumptions.bytes_a_pixel * pixels) + assumptions.bytes_a_sample
    keep = experiment.train.keep_checkpoints
    return {
        "preset": experiment.name,
        "resolution": experiment.stage.resolution,
        "low_resolution": experiment.stage.low_resolution,
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
            "usable": usable,
            "peak": traced.interval.peak,
            "phase": traced.interval.phase,
            "at_peak": traced.interval.at_peak,
            "held": dry_run.held,
            "grid": grid,
        },
        "flop": traced.flops,
        **_times(
            *(experiment, traced, card if dtype is not None else replace(card, tflops=None)),
            *(traffic, loading, assumptions),
        ),
        "loading": asdict(loading),
        "traffic": traffic,
        "disk": {
            "checkpoint": stored,
            "checkpoints": (keep + 1) * stored,  # including the one being written
            "picture": picture,
            "embedding": embedding,
            "samples": assumptions.samples,
            "dataset": assumptions.samples * (picture + embedding),
        },
        "calibrated": {name: asdict(entry) for name, entry in CALIBRATION.items()},
        "assumed": {
            **asdict(assumptions),
            "reserved": RESERVED,
            "gpus_a_machine": GPUS_PER_MACHINE,
            **{name: getattr(card, name) for name in ("memory", "tflops", "link", "network")},
        },
    }


def _grid(experiment: Experiment, dry_run: DryRun, dtype: torch.dtype | None, on_gpu: bool) -> int:
    """Return the bytes that a GPU needs to sample a grid while it holds the training state."""
    stage, text = experiment.stage, experiment.text
    side = stage.resolution
    step = step_bytes(
        *(stage, stage.sampling, (side, side), sampling_micro_batch(side)),
        text_tokens=0 if text is None else text.max_tokens,
        dtype=dtype,
        gpu=on_gpu,
    )
    return step + sum(size for kind, size in dry_run.held.items() if kind != "gradients")


def _times(
    experiment: Experiment,
    traced: TracedStep,
    card: Gpu,
    traffic: list[dict[str, Any]],
    loading: Loading,
    assumptions: Assumptions,
) -> dict[str, Any]:
    """Estimate the time of a step: the maximum of computing, traffic over links or the network, and loading.

    training_images_per_s: the rate without waiting for the loader.
    """
    if card.tflops is None:
        return dict.fromkeys(("step_s", "bound_by", "images_per_s", "training_images_per_s", "days"))
    seconds = {"computing": sum(traced.flops.values()) / (card.tflops * 1e12 * assumptions.mfu)}
    for row in traffic:
        seconds[row["over"]] = seconds.get(row["over"], 0.0) + row["seconds"]
    batch_size = experiment.train.batch_size
    training = max(seconds.values())
    seconds["loading"] = batch_size / loading.images_per_s
    bound_by = max(seconds, key=lambda name: seconds[name])
    step = seconds[bound_by]
    return {
        "step_s": step,
        "bound_by": bound_by,
        "images_per_s": batch_size / step,
        "training_images_per_s": batch_size / training,
        "days": step * experiment.train.steps / 86400,
    }


def _traffic(traced: TracedStep, card: Gpu, gpus: int) -> list[dict[str, Any]]:
    """Return the bytes that a rank sends per step, and the time of each collective by itself.

    The ranks of a replica are consecutive, so a group no larger than a machine's number of GPUs is within one machine.
    """
    sizes = {"all": gpus, "shard": min(traced.parallel.shard, gpus)}
    rows = []
    for (collective, name), sent in sorted(traced.sent.items()):
        ranks = sizes.get(name, gpus // sizes["shard"])
        within = gpus <= GPUS_PER_MACHINE or (name == "shard" and ranks <= GPUS_PER_MACHINE)
        over, speed = ("links", card.link) if within else ("network", card.network)
        row = {"collective": collective, "mesh": name, "ranks": ranks, "over": over, "bytes": sent}
        rows.append({**row, "seconds": sent / 1e9 / speed})
    return rows
