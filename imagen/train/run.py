"""Train a stage with sample grids and exports: `imagen train`."""

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
    """Train `experiment` on the shards in `data`, in the run folder `out`, or resume where it stopped.

    Writes OUT/samples/step-NNNNNNNN.png at intervals, always of the same captions and noise, and OUT/export, a
    one-stage cascade with the EMA weights, with each checkpoint.

    data: a folder or URL of shards, or a list of several, each a path or (path, weight). Several are mixed: each sample
        comes from one of them with a probability proportional to its weight, or to its size without weights.
    callbacks: further ones (`imagen.Callback`); every rank passes its own.
    minutes: budget of wall time. profile: first and last step of a trace, written to OUT/profile.
    ranks: the processes that train together (`imagen.train.ranks.process_group`), each of which calls this; default:
        this one, on the default device.
    report: receives lines for the user.

    Raises UserError as `imagen.train.trainer.train`.
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
