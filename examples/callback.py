"""Custom training callbacks: a metric, and a stop when the validation loss no longer falls.

python examples/callback.py emoji_64 SHARDS RUN
"""

import sys
from dataclasses import dataclass, field

from imagen.presets import preset
from imagen.train.callbacks import Callback
from imagen.train.meter import Row
from imagen.train.run import train_run
from imagen.train.setup import TrainingRun
from imagen.train.step import StepResult


@dataclass
class EarlyStopping(Callback):
    """Stop training when the validation loss has not fallen in `patience` measurements, `train.gap_every` steps apart.

    A resumed run starts counting at zero.
    """

    patience: int = 5
    best: float = field(default=float("inf"), init=False)
    worse: int = field(default=0, init=False)  # measurements since the best one

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        loss = row.get("validation_loss")
        if loss is None:
            return
        self.worse = 0 if loss < self.best else self.worse + 1
        self.best = min(self.best, loss)
        if self.worse >= self.patience:
            run.stopper.request(f"the validation loss has not fallen in {self.worse} measurements")


@dataclass
class Clipping(Callback):
    """Add `clipped` to the metrics: the share of steps since the last row whose gradients were clipped."""

    steps: int = field(default=0, init=False)
    clipped: int = field(default=0, init=False)

    def on_step(self, run: TrainingRun, step: int, result: StepResult) -> None:
        self.steps += 1
        self.clipped += result.grad_norm > run.experiment.optim.clip_norm
        run.measurements["clipped"] = self.clipped / self.steps

    def on_row(self, run: TrainingRun, step: int, row: Row) -> None:
        self.steps = self.clipped = 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/callback.py PRESET SHARDS RUN")
    name, shards, run = sys.argv[1:]
    train_run(preset(name), shards, run, callbacks=[Clipping(), EarlyStopping()])
