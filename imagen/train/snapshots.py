"""Write EMA snapshots at intervals."""

from imagen.train.callbacks import Callback
from imagen.train.setup import TrainingRun


class EmaSnapshots(Callback):
    """Writes the EMAs to RUN/averages every `train.ema_snapshot_every` steps, for `imagen export` to choose from."""

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.ema_snapshot_every

    def on_interval(self, run: TrainingRun, step: int) -> None:
        run.checkpointer.snapshot(step)
