"""Callbacks: code that the trainer calls around its steps, its own and a user's.

    class StopAtLoss(imagen.Callback):
        def on_step(self, run, step, result):
            if sum(result.losses) / len(result.losses) < 0.01:
                run.stopper.request("the loss is low enough")

    imagen.train_run(experiment, "shards", "runs/base", callbacks=[StopAtLoss()])

The trainer's own work at intervals consists of callbacks, too: `ValidationGap`, `MetricRows`, `MetricsFile`,
`SampleGrid`, `StageExport`, `EmaSnapshots`, `ConsoleProgress` and the loggers of `train.loggers`.
"""

from torch import Tensor

from imagen.train.meter import Row
from imagen.train.progress import TrainResult
from imagen.train.setup import TrainingRun
from imagen.train.step import StepResult


class Callback:
    """Hooks of a training run, each of which does nothing by default.

    Every rank calls the hooks of its own callbacks, in the order of their list. A callback that exchanges anything with
    other ranks must be there on all of them, and be due at the same steps.
    """

    # Steps between calls of `on_interval`, which also follows the last step. 0: the last step alone. None: never.
    every: int | None = None

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether `on_interval` is called after `step` of `steps`."""
        return self.every is not None and is_due(self.every, step, steps)

    def on_start(self, run: TrainingRun) -> None:
        """Prepare, after the run is locked, checked and set up, and before the first step of this process."""

    def on_step(self, run: TrainingRun, step: int, result: StepResult) -> None:
        """Receive the result of a step. On a GPU `run` may have begun the step after it meanwhile."""

    def on_interval(self, run: TrainingRun, step: int) -> None:
        """Work between two steps: weights and results are those of `step`. `run.evaluating()` gives the EMA weights."""

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        """Receive a row of metrics, as in metrics.jsonl."""

    def on_image(self, run: TrainingRun, step: int, name: str, image_CHW: Tensor) -> None:
        """Receive an image that another callback made: uint8 [3, H, W]."""

    def before_checkpoint(self, run: TrainingRun, step: int) -> None:
        """Write what must be on disk before the checkpoint is."""

    def on_checkpoint(self, run: TrainingRun, step: int) -> None:
        """Continue after a checkpoint's tensors are copied; its files are being written."""

    def on_end(self, run: TrainingRun, result: TrainResult | None) -> None:
        """Release resources. result: None if training ends with an exception."""


def is_due(every: int, step: int, steps: int) -> bool:
    """Return whether `step` is a multiple of `every`, or the last of `steps`; `every` 0: only the last is due."""
    return step == steps or (every > 0 and step % every == 0)
