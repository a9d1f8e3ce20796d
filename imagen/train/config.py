"""How a stage is trained."""

from dataclasses import dataclass
from typing import Protocol

from imagen.cascade.config import StageConfig
from imagen.data.loader import DataConfig
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
