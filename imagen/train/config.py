"""How a stage is trained."""

import math
from dataclasses import dataclass
from typing import Protocol

from imagen.cascade.config import StageConfig
from imagen.data.loader import DataConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError, check_number
from imagen.models.precision import Precision
from imagen.models.text import TextConfig
from imagen.train.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2_500_000
    batch_size: int = 2048  # global: over all ranks and accumulation steps
    accumulation: int = 1  # micro-batches a step
    seed: int = 0
    precision: Precision = "auto"  # auto: bf16 where the processor has it
    compile: bool = False  # torch.compile the U-Net: minutes at the start, worth it on GPUs
    # Noise levels are drawn with t ~ U[0, 1] of this schedule; None: of the stage's, as it is sampled.
    schedule: ScheduleConfig | None = None
    ema_decay: float = 0.9999
    text_dropout: float = 0.1
    shuffle_captions: bool = False  # control experiment: every picture is trained with another one's caption
    max_nonfinite: int = 10  # skipped steps in a row before giving up
    log_every: int = 50
    sample_every: int = 5_000
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 2
    gap_every: int = 500  # measure the conditional gap
    gap_samples: int = 128

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range. An interval of 0: at the last step alone."""
        for name in ("steps", "batch_size", "accumulation", "max_nonfinite", "keep_checkpoints", "gap_samples"):
            check_number(f"train.{name}", getattr(self, name), least=1)
        for name in ("seed", "log_every", "sample_every", "checkpoint_every", "gap_every"):
            check_number(f"train.{name}", getattr(self, name), least=0)
        check_number("train.ema_decay", self.ema_decay, least=0, below=1)
        check_number("train.text_dropout", self.text_dropout, least=0, most=1)


class Experiment(Protocol):
    """`imagen.config.Experiment`, which is above this module."""

    @property
    def name(self) -> str: ...
    @property
    def stage(self) -> StageConfig: ...
    @property
    def text(self) -> TextConfig | None: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def train(self) -> TrainConfig: ...


def check(experiment: Experiment, world_size: int = 1) -> None:
    """UserError, naming the field, if a value is out of range or the parts of an experiment do not fit each other."""
    stage, text, config, unet = experiment.stage, experiment.text, experiment.train, experiment.stage.unet
    for part in (text, experiment.data, experiment.optim, config):
        if part is not None:
            part.check()
    stage.check("stage")
    if text is None and experiment.data.on_the_fly:
        raise UserError("data.on_the_fly is true, but text is null: there is nothing to encode")
    if text is not None and (text.cleaning != "none" or text.padding != "trim") and not experiment.data.on_the_fly:
        raise UserError(
            f"text.cleaning is {text.cleaning!r} and text.padding {text.padding!r}; stored embeddings are of captions "
            "as they are, without padding: set data.on_the_fly to true"
        )
    width = None if text is None else text.width
    if unet.text_width != width:
        needed = "text is null, so it must be null too" if text is None else f"text.width is {width}: make them equal"
        raise UserError(f"stage.unet.text_width is {unet.text_width}, but {needed}")
    if unet.image_channels != 3:
        raise UserError(f"stage.unet.image_channels is {unet.image_channels}; pictures are read as RGB: it must be 3")
    if (crop := experiment.data.crop) is not None:
        scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
        unit = math.lcm(unet.total_stride, scale)
        if crop > stage.resolution or crop % unit:
            raise UserError(f"data.crop is {crop}; it must divide by {unit} and be at most {stage.resolution}")
    parts = config.accumulation * world_size
    if config.batch_size % parts:
        ranks = f" times {world_size} ranks" if world_size > 1 else ""
        raise UserError(
            f"train.batch_size {config.batch_size} does not divide by train.accumulation {config.accumulation}{ranks}"
        )
    if config.shuffle_captions and (text is None or config.batch_size < 2 * parts):
        raise UserError("train.shuffle_captions needs text, and micro-batches of two samples or more")
