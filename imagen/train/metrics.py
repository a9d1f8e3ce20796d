"""Compute rows of metrics at intervals, and write them to metrics.jsonl."""

import json
import math
import os

from imagen.files import cannot_write
from imagen.train.callbacks import Callback, is_due
from imagen.train.meter import Meter, Row
from imagen.train.optim import learning_rate
from imagen.train.progress import TrainResult
from imagen.train.rundir import truncate_metrics
from imagen.train.setup import TrainingRun


class MetricRows(Callback):
    """Computes a row of metrics every `train.log_every` steps, and at steps with measurements of other callbacks.

    Passes it to every callback's `on_row`. All ranks have this callback, because timings are gathered.
    """

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.log_every
        gap_every = None if run.experiment.text is None else run.config.gap_every
        self._measured_every = [every for every in (gap_every, run.config.evaluate_every) if every is not None]

    def is_due(self, step: int, steps: int) -> bool:
        return super().is_due(step, steps) or any(is_due(every, step, steps) for every in self._measured_every)

    def on_interval(self, run: TrainingRun, step: int) -> None:
        row: Row = run.progress.meter.row()
        row |= {"lr": learning_rate(run.experiment.optim, step, run.config.steps), "images": run.images}
        row |= {**run.timer.row(), **run.measurements, "eta_s": run.seconds_left}
        run.log_row({name: _finite(value) for name, value in row.items()})
        run.measurements = {}
        run.progress.meter = Meter()


class MetricsFile(Callback):
    """Writes RUN/metrics.jsonl: strict JSON, one object per row."""

    def on_start(self, run: TrainingRun) -> None:
        self._path = run.folder / "metrics.jsonl"
        truncate_metrics(self._path, run.step)
        try:
            self._file = open(self._path, "a", buffering=1)  # noqa: SIM115  # on_end closes it
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        try:
            self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def before_checkpoint(self, run: TrainingRun, step: int) -> None:
        """Sync the file: a resumed run does not write the rows before its checkpoint again."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error


def _finite(value: float | int | None) -> float | int | None:
    """Return the value, or None for NaN and infinity, which strict JSON does not support."""
    return value if value is None or math.isfinite(value) else None
