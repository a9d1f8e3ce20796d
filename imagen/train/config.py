"""The `train` fields of an experiment, and how a batch divides into micro-batches."""

from dataclasses import dataclass
from typing import Literal

from imagen import limits
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError, check_number
from imagen.evaluate.metrics.table import find_metric
from imagen.precision import Precision
from imagen.train.posthoc import LONGEST

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int = 2_500_000  # optimizer updates
    batch_size: int = 2048  # per step, over all ranks and micro-batches
    micro_batch: int | None = None  # samples per forward pass of a rank; None: the rank's whole share of the batch
    seed: int = 0  # of weights, order, noise, crops and text dropout
    precision: Precision = "auto"  # auto: bf16 where the hardware supports it, fp16 on other NVIDIA GPUs, else fp32
    # Noise levels are drawn from this schedule with t ~ U[0, 1]; None: the stage's own, which sampling uses.
    schedule: ScheduleConfig | None = None
    ema_decay: float = 0.9999  # of the EMA that is sampled and exported
    # Further EMAs. Their snapshots are written to RUN/averages, for `imagen export` to choose from.
    ema_decays: tuple[float, ...] = ()
    ema_sigma_rels: tuple[float, ...] = ()  # as in EDM2; from two, such as 0.05 and 0.1, any other is reconstructed
    ema_snapshot_every: int = 5_000  # steps between snapshots of these EMAs
    ema_every: int = 1  # steps between updates of the EMAs
    text_dropout: float = 0.1  # share of captions that the unconditional embedding replaces, for guidance
    freeze: tuple[str, ...] = ()  # fnmatch patterns of parameters that are not trained, such as `down.*`
    trainable: tuple[str, ...] = ()  # fnmatch patterns of the only parameters that are trained; none: all
    shuffle_captions: bool = False  # control experiment: each image is trained with another image's caption
    max_nonfinite: int = 10  # consecutive non-finite steps after which training fails
    log_every: int = 50  # steps between rows of metrics; for this and the next two, 0: the last step alone
    sample_every: int = 5_000  # steps between sample grids
    checkpoint_every: int = 5_000  # steps between checkpoints and exports
    keep_checkpoints: int = 2  # number of latest checkpoints to keep
    keep_every: int = 0  # also keep checkpoints at multiples of this step; 0: none
    gap_every: int = 500  # steps between measurements of the conditional gap
    gap_samples: int = 128  # validation samples of that measurement
    # Steps between metrics of samples of the EMA weights, as `imagen evaluate` computes them; None: never.
    evaluate_every: int | None = None
    evaluate_images: int = 256  # samples that they measure: held-out ones, or training samples without that split
    evaluate_metrics: tuple[str, ...] = ("kd_efficientnet",)  # names of metrics of `imagen evaluate`
    # Where metrics and sample grids go, beside RUN/metrics.jsonl and RUN/samples. tensorboard: if it is installed.
    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    # For the MFU in the log: 10^12 dense operations per second of one device in `precision`. None: the manufacturer's
    # figure (imagen/gpus.py); for an unknown device the MFU is not logged.
    peak_tflops: float | None = None

    def check(self) -> None:
        """Raise UserError, naming the field, for a value out of range. An interval of 0 means only the last step."""
        limits.check(self, limits.TRAIN, "train.")
        for name in self.evaluate_metrics:
            if find_metric(name).extractor == "pairs":
                raise UserError(f"train.evaluate_metrics: {name} is computed by `imagen evaluate --inputs true` only")
        for sigma_rel in self.ema_sigma_rels:
            check_number("train.ema_sigma_rels", sigma_rel, above=0, below=LONGEST)


def micro_batches(config: TrainConfig, world_size: int) -> tuple[int, int]:
    """Return (samples per micro-batch of one rank, micro-batches per step).

    Raises UserError, naming a size that works, if `batch_size` is not divisible.
    """
    if config.batch_size % world_size:
        near = max(1, round(config.batch_size / world_size)) * world_size
        raise UserError(f"train.batch_size {config.batch_size} is not divisible by {world_size} ranks; use {near}")
    share = config.batch_size // world_size
    micro = min(config.micro_batch or share, share)
    if share % micro:
        divisor = max(size for size in range(1, micro + 1) if share % size == 0)
        raise UserError(
            f"train.batch_size {config.batch_size} gives each rank {share} samples, which do not divide into "
            f"micro-batches of {micro}; set train.micro_batch to {divisor}"
        )
    return micro, share // micro
