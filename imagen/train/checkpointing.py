"""Update, save and restore the EMAs and checkpoints of a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from imagen.models.unet import UNet
from imagen.train.checkpoint import CheckpointFolder, RunState
from imagen.train.config import TrainConfig
from imagen.train.ema import build_emas
from imagen.train.optim import Optimizers
from imagen.train.posthoc import save_snapshot
from imagen.train.ranks import Ranks
from imagen.train.state import create_optimizer_state, run_tensors


class Checkpointer:
    """The EMAs of a U-Net and the run's checkpoints and snapshots. All ranks call all methods together."""

    def __init__(self, run: Path, config: TrainConfig, unet: UNet, optimizer: Optimizers, ranks: Ranks):
        self.folder, self.unet, self.optimizer, self.ranks = run, unet, optimizer, ranks
        self.emas = build_emas(unet, config.ema_decay, config.ema_decays, config.ema_sigma_rels)
        self.ema = self.emas["ema"]  # sampled, validated and exported
        self.checkpoints = CheckpointFolder(run / "checkpoints", config.keep_checkpoints, config.keep_every, ranks)
        self.saved_step: int | None = None  # of the last checkpoint of this process
        self.steps, self.every = config.steps, config.ema_every
        self.averaged_step = 0  # the last step that the EMAs include

    def resume(self, report: Callable[[str], None]) -> RunState | None:
        """Load the newest readable checkpoint and return its state; None if there is no checkpoint yet.

        Raises UserError if there are checkpoints but none can be read.
        """
        if not self.ranks.on_first(self.checkpoints.paths):
            return None
        create_optimizer_state(self.unet, self.optimizer)
        tensors = run_tensors(self.unet, self.emas, self.optimizer)
        state = self.checkpoints.load_latest(tensors, report)
        if "optimizer" not in tensors:
            for part in self.optimizer.optimizers:
                part.state.clear()
        return state

    def update_emas(self, step: int) -> None:
        """Update the EMAs with the weights after `step`, if it is a multiple of `train.ema_every` or the last step.

        Not before a checkpoint or grid: then the EMAs would depend on when these are written. A skipped step counts as
        a step that left the weights unchanged.
        """
        if step > self.averaged_step and (step % self.every == 0 or step == self.steps):
            for ema in self.emas.values():
                ema.update(self.unet, step, self.averaged_step)
            self.averaged_step = step

    def snapshot(self, step: int) -> None:
        """Write all EMAs except `ema`, which is in the checkpoints, to RUN/averages in float16."""
        for name, ema in self.emas.items():
            if ema is not self.ema:
                weights, folder = ema.export(self.unet, torch.float16), self.folder / "averages"
                self.ranks.on_first(lambda: save_snapshot(folder, name, step, weights))  # noqa: B023

    def checkpoint(self, step: int, state: RunState) -> None:
        """Start writing a checkpoint; `checkpoints.wait` waits until it is complete."""
        tensors = run_tensors(self.unet, self.emas, self.optimizer)
        self.checkpoints.save(step, tensors, state | {"averaged_step": self.averaged_step})
        self.saved_step = step

    def export(self) -> dict[str, Tensor]:
        """Return the EMA's full weights, float32, on the CPU; ranks other than the first get an empty dict."""
        return self.ema.export(self.unet)
