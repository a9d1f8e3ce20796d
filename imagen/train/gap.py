"""Validation during training: the conditional gap at intervals."""

from itertools import islice

from imagen.stage.loss import ForwardProcess
from imagen.train.callbacks import Callback
from imagen.train.setup import TrainingRun
from imagen.train.validation import ConditionalGap

BATCH = 16  # validation samples per evaluation, on any number of ranks


class ValidationGap(Callback):
    """Measures the conditional gap of the EMA weights every `train.gap_every` steps, on `train.gap_samples` samples.

    Uses the same samples every time: held-out ones if there are any, else training samples. Every rank evaluates all of
    them, so the result does not depend on the number of ranks.
    """

    def on_start(self, run: TrainingRun) -> None:
        self.every = run.config.gap_every
        size = max(2, min(BATCH, run.config.gap_samples))
        count = -(-run.config.gap_samples // size)
        loader = run.data.validation_loader(size, run.config.seed, run.ranks.device)
        forward_process = ForwardProcess(
            run.experiment.stage,
            seed=run.config.seed,
            batch_size=size * count,
            device=run.ranks.device,
            schedule=run.config.schedule,
        )
        self._gap = ConditionalGap(islice(loader, count), forward_process)

    def on_interval(self, run: TrainingRun, step: int) -> None:
        with run.evaluating() as unet:
            gap, loss = self._gap.measure(unet, run.model.autocast)
        run.measurements |= {"conditional_gap": gap, "validation_loss": loss}
