"""Training of a stage with sample grids and exports: `imagen train`."""

from collections.abc import Sequence
from pathlib import Path

from imagen.data.shards.mixture import Data
from imagen.train.callbacks import Callback
from imagen.train.experiment import Experiment
from imagen.train.export import StageExport
from imagen.train.grid import SampleGrid
from imagen.train.profiling import Span
from imagen.train.progress import TrainResult
from imagen.train.ranks import Ranks
from imagen.train.setup import Report
from imagen.train.trainer import train


def train_run(
    experiment: Experiment,
    data: Data,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    minutes: float | None = None,
    profile: Span | None = None,
    ranks: Ranks | None = None,
    report: Report = print,
) -> TrainResult:
    """Train `experiment` on the shards in `data`, in the run folder `out`; resume if the folder has a checkpoint.

    Writes OUT/samples/step-NNNNNNNN.png at intervals, always for the same captions and noise. With each checkpoint,
    writes OUT/export, a one-stage cascade with the EMA weights.

    data: a folder or URL of shards, or a list of several, each a path or (path, weight). Several are mixed: each sample
        comes from one of them with a probability proportional to its weight, or to its size without weights.
    callbacks: additional callbacks (`imagen.Callback`); every rank passes its own.
    minutes: limit of wall time. profile: first and last step of a trace, written to OUT/profile.
    ranks: the processes that train together (`imagen.train.ranks.process_group`); each of them calls this function.
        Default: this process alone, on the default device.
    report: receives lines for the user.

    Raises UserError like `imagen.train.trainer.train`.
    """
    return train(
        experiment,
        data,
        out,
        callbacks=[SampleGrid(), StageExport(), *callbacks],
        minutes=minutes,
        profile=profile,
        ranks=ranks,
        report=report,
    )
