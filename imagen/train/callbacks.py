"""Callbacks: code that the trainer calls between its steps, built-in or provided by the user.

    class StopAtLoss(imagen.Callback):
        def on_step(self, run, step, result):
            if sum(result.losses) / len(result.losses) < 0.01:
                run.stopper.request("the loss is low enough")

    imagen.train_run(experiment, "shards", "runs/base", callbacks=[StopAtLoss()])

The trainer itself implements everything at intervals as callbacks: `ValidationGap`, `MetricRows`, `MetricsFile`,
`SampleGrid`, `StageExport`, `EmaSnapshots`, `ConsoleProgress` and the loggers of `train.loggers`.
"""

from torch import Tensor

from imagen.train.meter import Row
from imagen.train.progress import TrainResult
from imagen.train.setup import TrainingRun
from imagen.train.step import StepResult


class Callback:
    """Hooks of a training run; by default they do nothing.

    Every rank calls the hooks of its own callbacks, in list order. A callback that communicates with other ranks must
    be in the list of every rank and be due at the same steps.
    """

    # Steps between calls of `on_interval`, which is also called after the last step. 0: only after the last step.
    # None: never.
    every: int | None = None
    # Whether `on_interval` follows a checkpoint of the same step, so that its failure cannot lose steps. If it writes
    # to a logger, a run that is killed in between does not write it again.
    after_checkpoint = False

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether `on_interval` is called after `step` of `steps`."""
        return self.every is not None and is_due(self.every, step, steps)

    def on_start(self, run: TrainingRun) -> None:
        """Prepare for training. The run is locked, checked and set up; the first step of this process follows."""

    def on_step(self, run: TrainingRun, step: int, result: StepResult) -> None:
        """Receive the result of a step. On a GPU, `run` may have started the next step already."""

    def on_interval(self, run: TrainingRun, step: int) -> None:
        """Work between two steps, with the weights and results of `step`. `run.evaluating()` gives the EMA weights."""

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        """Receive a row of metrics, as in metrics.jsonl."""

    def on_image(self, run: TrainingRun, step: int, name: str, image_CHW: Tensor) -> None:
        """Receive an image from another callback: uint8 [3, H, W]."""

    def before_checkpoint(self, run: TrainingRun, step: int) -> None:
        """Write data that must be on disk before the checkpoint."""

    def on_checkpoint(self, run: TrainingRun, step: int) -> None:
        """Work after a checkpoint's tensors have been copied, while its files are being written."""

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        """Release resources. result: None if training ends with an exception."""


def is_due(every: int, step: int, steps: int) -> bool:
    """Return whether `step` is a multiple of `every`, or the last of `steps`; with `every` 0, only the last is due."""
    return step == steps or (every > 0 and step % every == 0)
