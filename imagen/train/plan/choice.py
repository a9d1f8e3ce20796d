"""Choose the micro-batch and the activation checkpointing for given GPUs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from imagen.errors import UserError
from imagen.gpus import GIB, PLANNABLE
from imagen.train.config import ParallelConfig, micro_batches
from imagen.train.experiment import Experiment
from imagen.train.plan.calibration import usable_bytes
from imagen.train.plan.dry_run import DryRun, TracedStep

# Micro-batch that is assumed to use a GPU fully: recomputation to allow a larger one is not worth its cost.
TARGET_MICRO_BATCH = 8


def choose(dry_run: DryRun, usable: int, name: str) -> TracedStep:
    """Trace the step with the cheapest activation checkpointing that fits, and its largest micro-batch that fits.

    Starts with the config's checkpointing, and recomputes more until a micro-batch of `TARGET_MICRO_BATCH` fits (or the
    rank's whole share of the batch, if smaller). If none fits, chooses the checkpointing with the largest micro-batch.
    If the config sets `train.micro_batch`, only that size is considered.

    usable: bytes per GPU. name: name of the GPU. Raises UserError, with suggestions, if nothing fits.
    """
    experiment = dry_run.experiment
    sizes = candidates(experiment, dry_run.world_size)
    wanted = min(TARGET_MICRO_BATCH, sizes[-1])
    cheapest, *costlier = checkpointings(experiment.parallel, len(experiment.stage.unet.levels))
    search = _Search(dry_run, sizes, usable)
    best = search.largest(cheapest)
    if not costlier or (best is not None and best.micro_batch >= wanted):
        return best or _raise_does_not_fit(search, cheapest, name)
    *between, everything = costlier
    least = search.largest(everything)
    if least is None:
        return best or _raise_does_not_fit(search, everything, name)
    wanted = min(wanted, least.micro_batch)
    for parallel in between:
        found = search.largest(parallel)
        if found is not None and found.micro_batch >= wanted:
            return found
    return best if best is not None and best.micro_batch >= wanted else least


def candidates(experiment: Experiment, world_size: int) -> list[int]:
    """Return the micro-batches that divide a rank's share of the batch, in ascending order, or only the config's."""
    micro, count = micro_batches(experiment.train, world_size)
    if experiment.train.micro_batch is not None:
        return [micro]
    share = micro * count
    return [size for size in range(1, share + 1) if share % size == 0]


def checkpointings(parallel: ParallelConfig, levels: int) -> Iterator[ParallelConfig]:
    """Yield the config's checkpointing, then settings that recompute more, level by level, up to full checkpointing."""
    yield parallel
    if parallel.checkpointing == "full":
        return
    first = 0 if parallel.checkpointing == "none" else 1 + max(parallel.checkpoint_levels)
    for last in range(first, levels - 1):
        chosen = tuple(sorted({*parallel.checkpoint_levels, *range(last + 1)}))
        yield replace(parallel, checkpointing="selective", checkpoint_levels=chosen)
    yield replace(parallel, checkpointing="full", checkpoint_levels=())


@dataclass
class _Search:
    dry_run: DryRun
    sizes: list[int]
    usable: int  # bytes

    def largest(self, parallel: ParallelConfig) -> TracedStep | None:
        """Trace the step with the largest micro-batch that fits; None if not even the smallest does.

        Memory at each moment is an affine function of the micro-batch, so two traced sizes predict the others; the
        chosen size is then traced. Size 1 is not used for prediction, because reshaping a single image may need no
        copy.
        """
        *smaller, most = self.sizes
        traced = self.dry_run.trace(parallel, most)
        if traced.interval.peak <= self.usable:
            return traced
        if len(smaller) > 2:
            low, high = (self.dry_run.trace(parallel, size) for size in smaller[1:3])
            fitting = [size for size in smaller if predicted_peak(low, high, size) <= self.usable]
            smaller = smaller[: len(fitting)]
        for size in reversed(smaller):
            traced = self.dry_run.trace(parallel, size)
            if traced.interval.peak <= self.usable:
                return traced
        return None


def predicted_peak(low: TracedStep, high: TracedStep, size: int) -> float:
    """Predict the peak in bytes with micro-batches of `size` from traced steps with two other sizes.

    Extrapolates each moment of the step and takes the maximum. If a part of the steps (a forward pass, a backward pass,
    the update) has a different number of moments in the two, extrapolates its peaks instead.
    """
    below, above = _parts(low), _parts(high)
    if len(below) != len(above):
        below, above = [low.interval.totals], [high.interval.totals]
    share = (size - low.micro_batch) / (high.micro_batch - low.micro_batch)
    peaks = []
    for a, b in zip(below, above, strict=True):
        if a.shape != b.shape:
            a, b = a.max(), b.max()
        peaks.append((a + share * (b - a)).max())
    return float(max(peaks))


def _parts(traced: TracedStep) -> list[np.ndarray]:
    """Return the live bytes at each moment, split where the phase changes."""
    phases = traced.interval.phases
    cuts = [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    return np.split(traced.interval.totals, cuts)


def _raise_does_not_fit(search: _Search, parallel: ParallelConfig, name: str) -> TracedStep:
    size = search.sizes[0]
    needed = search.dry_run.trace(parallel, size).interval.peak
    experiment, world_size = search.dry_run.experiment, search.dry_run.world_size
    helps = []
    if size > 1:
        helps.append("a smaller micro-batch")
    if (shard := experiment.parallel.shard) < world_size:
        helps.append(f"more shards (parallel.shard is {shard})")
    larger = [key for key, gpu in PLANNABLE.items() if usable_bytes(gpu) >= needed]
    if larger:
        helps.append(f"a GPU as large as {min(larger, key=lambda key: PLANNABLE[key].memory)}")
    elif world_size == 1:
        helps.append("more GPUs")
    recomputed = " with full activation checkpointing" if parallel.checkpointing == "full" else ""
    raise UserError(
        f"{experiment.name} does not fit: a micro-batch of {size}{recomputed} takes {needed / GIB:.1f} GiB per GPU, "
        f"and {name} has {search.usable / GIB:.1f} GiB usable; use {' or '.join(helps) or 'a smaller model'}"
    )
