"""Read the files of a training run: config, log, and the newest checkpoint."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.doctor.finding import Skip
from imagen.errors import UserError
from imagen.files import read_json, read_json_lines
from imagen.jsonconfig import from_json
from imagen.models.unet import UNet
from imagen.stage.sampling import Stage
from imagen.stage.weights import build_unet
from imagen.train import checkpoint
from imagen.train.checkpoint import checkpoint_paths
from imagen.train.experiment import Experiment


class RunFiles:
    """Hold the files of a run folder; each is read at its first use."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def experiment(self) -> Experiment:
        """The config. Raises UserError if it is damaged."""
        path = self.folder / "config.json"
        return from_json(Experiment, read_json(path), str(path))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. Raises Skip without any."""
        path = self.folder / "metrics.jsonl"
        rows = read_json_lines(path, ("step",)) if path.is_file() else []
        if not rows:
            raise Skip("needs a log; the run has logged nothing yet")
        return rows

    @cached_property
    def checkpoint(self) -> Path:
        """The newest checkpoint. Raises Skip without one."""
        paths = checkpoint_paths(self.folder / "checkpoints")
        if not paths:
            raise Skip("needs a checkpoint; the run has none yet")
        return paths[-1]

    def weights(self, kind: str) -> dict[str, Tensor]:
        """Return tensors of the newest checkpoint: "model", or "ema" (with the model's buffers).

        Raises Skip if it does not hold the whole network, as where only adapters are trained.
        """
        try:
            model = checkpoint.read(self.checkpoint, "model")
            with torch.device("meta"):
                names = UNet(self.experiment.stage.unet).state_dict().keys()
            if names != model.keys():
                raise Skip("the checkpoint does not hold the whole network")
            return model if kind == "model" else model | checkpoint.read(self.checkpoint, kind)
        except ValueError as error:
            raise UserError(f"{self.checkpoint} is damaged ({error}); move it away to examine an older one") from None

    def raw_stage(self) -> Stage:
        """Return the stage with the weights that the optimizer updates, in place of their EMA."""
        config = self.experiment.stage
        return Stage(config, build_unet(config.unet, self.weights("model"), self.checkpoint))
