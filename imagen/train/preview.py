"""Preview a run: real steps in a temporary folder, measured, with nothing left behind: `imagen train --dry-run`."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagen.data.shards.mixture import Data, check_data
from imagen.errors import UserError
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.clock import peak_memory
from imagen.train.experiment import Experiment
from imagen.train.optim import learning_rate
from imagen.train.ranks import Ranks
from imagen.train.setup import Report
from imagen.train.trainer import Trainer

STEPS = 4  # after the first one, which also compiles and allocates
SECONDS = 20.0  # for these steps, and again for the loader
LOADED = 8  # batches per loader process, of which the first half are read ahead


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Measurements of the first steps of a run: rates over all ranks, in training images per second."""

    first_step_s: float  # with compilation
    step_s: float  # the fastest later step, with the wait for its data
    images_per_s: float
    loader_images_per_s: float  # without training beside it
    memory_gb: float  # 10^9 bytes at the peak, of the rank with the most: of a GPU, or of the process on a CPU
    loss: float  # of the last step
    steps: int  # of the whole run
    steps_left: int  # of them, those that RUN has not done yet
    total_s: float  # estimate for them: training alone, without validation, sample grids and checkpoints

    @property
    def waits(self) -> bool:
        """Whether the loader alone is slower than training should be."""
        return self.loader_images_per_s < 1.1 * self.images_per_s


def preview(
    experiment: Experiment,
    data: Data,
    out: str | Path | None = None,
    *,
    ranks: Ranks | None = None,
    report: Report = print,
) -> Preview:
    """Take the first steps of a run on the shards in `data`, and measure them. All ranks call this together.

    out: the run folder that training would use. It is only read, to know how many steps are left.

    Raises UserError as `imagen.train.trainer.train` for what does not fit, before a step or in one.
    """
    ranks, config = ranks or Ranks(), experiment.train
    ranks.on_first(lambda: check_data(data))
    with _temporary_folder(ranks) as folder:
        trainer = Trainer(experiment, data, folder, ranks=ranks, report=report)
        batches = trainer.run.batches()
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) <= STEPS and _agreed(ranks, sum(taken[1:])) < SECONDS):
            began, step = time.monotonic(), len(taken) + 1
            trainer.run.optimizer.set_learning_rate(learning_rate(experiment.optim, step, config.steps))
            result = trainer.launch(batches).result()
            trainer.run.checkpointer.update_emas(step)
            taken.append(time.monotonic() - began)
            if result.problem is not None:
                ranks.fail(f"step {len(taken)}: {result.problem}")
        memory = max(ranks.gather_objects(peak_memory(ranks.device)))
        own_rate = loader_rate(batches, trainer.run.micro_batch, experiment.data.workers)
        rate = min(ranks.gather_objects(own_rate)) * ranks.world_size
    first, later = _agreed(ranks, taken[0]), _agreed(ranks, min(taken[1:]))
    left = config.steps - ranks.on_first(lambda: _steps_done(out))
    return Preview(
        first_step_s=first,
        step_s=later,
        images_per_s=config.batch_size / later,
        loader_images_per_s=rate,
        memory_gb=memory / 1e9,
        loss=sum(result.losses) / len(result.losses),
        steps=config.steps,
        steps_left=max(0, left),
        total_s=max(0, left) * max(later, config.batch_size / rate),
    )


def _agreed(ranks: Ranks, seconds: float) -> float:
    """Return the longest of the ranks' times, so that all ranks decide alike."""
    return max(ranks.gather_objects(seconds))


def loader_rate(batches: Iterator, size: int, workers: int) -> float:
    """Return the images per second of this rank's loader while nothing trains.

    size: images per batch. Loader processes have read ahead: the first half of the batches is not counted, unless
    loading is so slow that it takes longer than SECONDS.
    """
    count = LOADED * max(1, workers)
    began = counted_from = time.monotonic()
    skipped = 0
    for number in range(count):
        next(batches)
        if number < count // 2 and time.monotonic() - began < SECONDS:
            counted_from, skipped = time.monotonic(), number + 1
        elif time.monotonic() - counted_from > SECONDS:
            break
    return (number + 1 - skipped) * size / (time.monotonic() - counted_from)


def _steps_done(out: str | Path | None) -> int:
    """Return the step of the last checkpoint of a run folder; 0 if there is none."""
    paths = [] if out is None else checkpoint_paths(Path(out) / "checkpoints")
    return max((int(path.name.removeprefix("step-")) for path in paths), default=0)


@contextmanager
def _temporary_folder(ranks: Ranks) -> Iterator[Path]:
    """Yield a folder of the first rank's, which is removed at the end. Nothing but a config is written to it."""
    try:
        folder = Path(ranks.on_first(lambda: tempfile.mkdtemp(prefix="imagen-dry-run-")))
    except OSError as error:
        raise UserError(f"cannot create a temporary folder: {error.strerror}; set TMPDIR") from None
    try:
        yield folder
    finally:
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
