"""What a run keeps of its weights: checkpoints to go on from, snapshots of further averages, the export."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from imagen.models.unet import UNet
from imagen.train.checkpoint import CheckpointFolder, Facts
from imagen.train.config import TrainConfig
from imagen.train.ema import averages
from imagen.train.optim import Optimizers
from imagen.train.posthoc import save_snapshot
from imagen.train.ranks import Ranks
from imagen.train.state import materialise, run_tensors

Export = Callable[[dict[str, Tensor], dict[str, int]], None]


class Keeper:
    """The averages of a U-Net, and the folder of the run that keeps them. All ranks call all methods together."""

    def __init__(self, run: Path, config: TrainConfig, unet: UNet, optimizer: Optimizers, ranks: Ranks):
        self.folder, self.unet, self.optimizer, self.ranks = run, unet, optimizer, ranks
        self.averages = averages(unet, config.ema_decay, config.ema_decays, config.ema_sigma_rels)
        self.ema = self.averages["ema"]  # what is sampled, validated and exported
        self.checkpoints = CheckpointFolder(run / "checkpoints", config.keep_checkpoints, config.keep_every, ranks)
        self.saved_step: int | None = None  # of the last checkpoint of this process
        self.every, self.averaged_step = config.ema_every, 0  # the last step that the averages know

    def resume(self, say: Callable[[str], None]) -> Facts | None:
        """Take over the newest checkpoint that can be read, and return its facts; None if there is none yet.

        Raises UserError if there are checkpoints and none can be read.
        """
        if not self.ranks.from_first(self.checkpoints.paths):
            return None
        materialise(self.unet, self.optimizer)
        return self.checkpoints.load_latest(run_tensors(self.unet, self.averages, self.optimizer), say)

    def update(self, step: int, *, now: bool = False) -> None:
        """Take the weights after `step` into the averages, if it is their turn; now: whether or not it is.

        A step that was skipped counts as one that left the weights as they were.
        """
        if step > self.averaged_step and (now or step % self.every == 0):
            for average in self.averages.values():
                average.update(self.unet, step, self.averaged_step)
            self.averaged_step = step

    def snapshot(self, step: int) -> None:
        """Write the averages that nothing else keeps, in 16 bits: they are many."""
        self.update(step, now=True)
        for name, average in self.averages.items():
            if average is not self.ema:
                weights, place = average.export(self.unet, torch.float16), (self.folder / "averages", name)
                self.ranks.from_first(lambda: save_snapshot(*place, step, weights))  # noqa: B023

    def checkpoint(self, step: int, facts: Facts) -> None:
        """Begin to write a checkpoint; `checkpoints.wait` until it is there."""
        self.update(step, now=True)
        self.checkpoints.save(step, run_tensors(self.unet, self.averages, self.optimizer), facts)
        self.saved_step = step

    def export(self, export: Export, info: dict[str, int]) -> None:
        """`export`, on the first rank, of the whole averaged weights, float32, on the CPU, and of `info`."""
        weights = self.ema.export(self.unet)
        self.ranks.from_first(lambda: export(weights, info))
