"""How a stage is trained."""

import math
from dataclasses import dataclass
from typing import Protocol

from imagen import limits
from imagen.data.loading.config import DataConfig
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError, check_number
from imagen.precision import Precision
from imagen.stage.config import StageConfig
from imagen.text.config import TextConfig
from imagen.train.optim import OptimConfig
from imagen.train.parallel import ParallelConfig
from imagen.train.posthoc import LONGEST


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2_500_000
    batch_size: int = 2048  # of a step: over all ranks and micro-batches
    micro_batch: int | None = None  # samples of a rank at a time; None: all of its share of the batch
    seed: int = 0
    precision: Precision = "auto"  # auto: bf16 where the processor multiplies it, fp16 on other NVIDIA GPUs, else fp32
    # Noise levels are drawn with t ~ U[0, 1] of this schedule; None: of the stage's, as it is sampled.
    schedule: ScheduleConfig | None = None
    ema_decay: float = 0.9999  # of the average that is sampled and exported
    # Further averages, of which RUN/averages keeps snapshots: for `imagen export` to choose from.
    ema_decays: tuple[float, ...] = ()
    ema_sigma_rels: tuple[float, ...] = ()  # EDM2's, any length of which can be made of two: 0.05 and 0.1, say
    ema_snapshot_every: int = 5_000
    ema_every: int = 1  # steps between updates of the averages, each of which stands for all of them
    text_dropout: float = 0.1
    shuffle_captions: bool = False  # control experiment: every picture is trained with another one's caption
    max_nonfinite: int = 10  # skipped steps in a row before giving up
    log_every: int = 50
    sample_every: int = 5_000
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 2  # the last so many
    keep_every: int = 0  # and those of steps that divide by this; 0: no others
    gap_every: int = 500  # measure the conditional gap
    gap_samples: int = 128
    # For the MFU in the log: 10^12 dense operations a second of one device in `precision`; None: as its maker states
    # them, where that is known, else there is no MFU.
    peak_tflops: float | None = None

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range. An interval of 0: at the last step alone."""
        limits.check(self, limits.TRAIN, "train.")
        for sigma_rel in self.ema_sigma_rels:
            check_number("train.ema_sigma_rels", sigma_rel, above=0, below=LONGEST)


class Experiment(Protocol):
    """`imagen.train.experiment.Experiment`, which is above this module."""

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
    @property
    def parallel(self) -> ParallelConfig: ...


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
    if unet.image_channels not in (1, 3):
        raise UserError(
            f"stage.unet.image_channels is {unet.image_channels}; pictures are read as RGB (3) or as grey (1)"
        )
    if (crop := experiment.data.crop) is not None:
        scale = 1 if stage.low_resolution is None else stage.resolution // stage.low_resolution
        unit = math.lcm(unet.total_stride, scale)
        if crop > stage.resolution or crop % unit:
            raise UserError(f"data.crop is {crop}; it must divide by {unit} and be at most {stage.resolution}")
    experiment.parallel.check(len(unet.levels), world_size)
    micro, _ = micro_batches(config, world_size)
    if config.shuffle_captions and (text is None or micro < 2):
        raise UserError("train.shuffle_captions needs text, and micro-batches of two samples or more")


def micro_batches(config: TrainConfig, world_size: int) -> tuple[int, int]:
    """(samples of a micro-batch of one rank, micro-batches of a step): what `batch_size` comes to.

    UserError, naming sizes that would do, if it does not divide.
    """
    if config.batch_size % world_size:
        near = max(1, round(config.batch_size / world_size)) * world_size
        raise UserError(
            f"train.batch_size {config.batch_size} does not divide among {world_size} ranks; {near} would do"
        )
    share = config.batch_size // world_size
    micro = min(config.micro_batch or share, share)
    if share % micro:
        divisor = max(size for size in range(1, micro + 1) if share % size == 0)
        raise UserError(
            f"train.batch_size {config.batch_size} gives each rank {share} samples, which do not divide into "
            f"micro-batches of {micro}; train.micro_batch {divisor} would do"
        )
    return micro, share // micro
