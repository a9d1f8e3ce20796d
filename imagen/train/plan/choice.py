"""How to train on given GPUs: pictures at a time, and what to compute again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from imagen.errors import UserError
from imagen.train.config import micro_batches
from imagen.train.experiment import Experiment
from imagen.train.parallel import ParallelConfig
from imagen.train.plan.dry_run import DryRun, TracedStep
from imagen.train.plan.gpus import GIB, GPUS, Gpu

# So many pictures at a time keep a GPU busy, it is assumed: computing again, to have more at a time, does not pay.
ENOUGH = 8


def choose(dry_run: DryRun, gpu: Gpu, name: str) -> TracedStep:
    """The cheapest checkpointing, no cheaper than the config's, with which `ENOUGH` pictures (or all of the rank's
    share, if it has fewer) fit at a time; then the most that do. If they fit with none, what lets most fit.

    A `train.micro_batch` of the config stays. UserError, saying what would help, if nothing fits.
    """
    experiment = dry_run.experiment
    sizes = candidates(experiment, dry_run.world_size)
    wanted = min(ENOUGH, sizes[-1])
    cheapest, *costlier = checkpointings(experiment.parallel, len(experiment.stage.unet.levels))
    search = _Search(dry_run, sizes, gpu.usable)
    best = search.largest(cheapest)
    if not costlier or (best is not None and best.micro_batch >= wanted):
        return best or _refuse(search, cheapest, gpu, name)
    *between, everything = costlier
    least = search.largest(everything)
    if least is None:
        return best or _refuse(search, everything, gpu, name)
    wanted = min(wanted, least.micro_batch)
    for parallel in between:
        found = search.largest(parallel)
        if found is not None and found.micro_batch >= wanted:
            return found
    return best if best is not None and best.micro_batch >= wanted else least


def candidates(experiment: Experiment, world_size: int) -> list[int]:
    """Sizes that divide the rank's share of `train.batch_size`, smallest first; one alone if the config gives it."""
    micro, count = micro_batches(experiment.train, world_size)
    if experiment.train.micro_batch is not None:
        return [micro]
    share = micro * count
    return [size for size in range(1, share + 1) if share % size == 0]


def checkpointings(parallel: ParallelConfig, levels: int) -> Iterator[ParallelConfig]:
    """The config's own and those that compute more again, cheapest first: level after level, then all."""
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
        """The step with most pictures at a time that fits, traced; None if one picture does not.

        Every moment's memory is affine in the size, so two traced sizes predict the others; what is chosen is traced.
        (Not size 1: a picture alone may be reshaped without a copy.)
        """
        *smaller, most = self.sizes
        traced = self.dry_run.trace(parallel, most)
        if traced.window.peak <= self.usable:
            return traced
        if len(smaller) > 2:
            low, high = (self.dry_run.trace(parallel, size) for size in smaller[1:3])
            fitting = [size for size in smaller if predicted_peak(low, high, size) <= self.usable]
            smaller = smaller[: len(fitting)]
        for size in reversed(smaller):
            traced = self.dry_run.trace(parallel, size)
            if traced.window.peak <= self.usable:
                return traced
        return None


def predicted_peak(low: TracedStep, high: TracedStep, size: int) -> float:
    """The peak in bytes with micro-batches of `size`, from steps with two other sizes: the highest of the lines that
    the step's moments lie on; or the one line of the peaks, if the steps do not have the same moments."""
    below, above = low.window.totals, high.window.totals
    if below.shape != above.shape:
        below, above = below.max(), above.max()
    slope = (above - below) / (high.micro_batch - low.micro_batch)
    return float((below + slope * (size - low.micro_batch)).max())


def _refuse(search: _Search, parallel: ParallelConfig, gpu: Gpu, name: str) -> TracedStep:
    size = search.sizes[0]
    needed = search.dry_run.trace(parallel, size).window.peak
    experiment, world_size = search.dry_run.experiment, search.dry_run.world_size
    helps = []
    if size > 1:
        helps.append("a smaller micro-batch")
    if (shard := experiment.parallel.shard) < world_size:
        helps.append(f"more shards (parallel.shard is {shard})")
    bigger = min((g for g in GPUS.values() if g.usable >= needed), key=lambda g: g.memory, default=None)
    if bigger is not None:
        helps.append(f"a GPU as large as {next(key for key, g in GPUS.items() if g is bigger)}")
    elif world_size == 1:
        helps.append("more GPUs")
    recomputed = " with every block recomputed" if parallel.checkpointing == "full" else ""
    pictures = "1 picture" if size == 1 else f"{size} pictures"
    raise UserError(
        f"{experiment.name} does not fit: {pictures} at a time{recomputed} take {needed / GIB:.1f} GiB a GPU, "
        f"{name} has {gpu.usable / GIB:.1f} to give; {' or '.join(helps) or 'a smaller model'} would help"
    )
