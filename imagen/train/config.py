"""The `train`, `optim` and `parallel` fields of an experiment, and how a batch divides into micro-batches."""

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
    ema_snapshot_every: int = 5_000  # steps between snapshots of these EMAs; 0: only after the last step
    ema_every: int = 1  # steps between updates of the EMAs
    text_dropout: float = 0.1  # share of captions that the unconditional embedding replaces, for guidance
    freeze: tuple[str, ...] = ()  # fnmatch patterns of parameters that are not trained, such as `down.*`
    trainable: tuple[str, ...] = ()  # fnmatch patterns of the only parameters that are trained; none: all
    shuffle_captions: bool = False  # control experiment: each image is trained with another image's caption
    max_nonfinite: int = 10  # consecutive non-finite steps after which training fails
    log_every: int = 50  # steps between rows of metrics; 0: only after the last step
    sample_every: int = 5_000  # steps between sample grids; 0: only after the last step
    checkpoint_every: int = 5_000  # steps between checkpoints and exports; 0: only after the last step
    keep_checkpoints: int = 2  # number of latest checkpoints to keep
    keep_every: int = 0  # also keep checkpoints at multiples of this step; 0: none
    gap_every: int = 500  # steps between measurements of the conditional gap; 0: only after the last step
    gap_samples: int = 128  # validation samples of that measurement
    # Steps between metrics of samples of the EMA weights, as `imagen evaluate` computes them; None: never.
    evaluate_every: int | None = None
    # Samples that they measure, rounded down to whole batches of 32: held-out ones, or training samples without that
    # split.
    evaluate_images: int = 256
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


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    # adam: AdamW without decay.  muon: Muon for the inner matrices, AdamW for the rest
    algorithm: Literal["adamw", "adam", "adafactor", "muon"] = "adamw"
    # Precision of Adam's moments between steps. int8: 8-bit codes with a scale per block of up to 256, for parameters
    # with at least 4,096 elements; adamw and adam only
    state: Literal["float32", "int8"] = "float32"
    lr: float = 1e-4  # learning rate after the warm-up
    muon_lr: float = 2e-3  # learning rate of Muon's parameters, with the same warm-up and schedule
    # Decay of the first and second moment. adafactor: betas[0] of 0 stores no first moment, betas[1] limits 1 - t^-0.8
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8  # not used by adafactor
    weight_decay: float = 0.0  # decoupled: a step subtracts lr x weight_decay x weight
    warmup_steps: int = 10_000  # steps in which the learning rate rises from 0
    # After the warm-up: cosine falls to 0 at the last step; rsqrt falls as 1 / sqrt(step)
    schedule: Literal["cosine", "constant", "rsqrt"] = "cosine"
    clip_norm: float = 1.0  # gradients are clipped to this norm

    def check(self) -> None:
        """Raise UserError, naming the field, for a value out of range."""
        limits.check(self, limits.OPTIM, "optim.")
        if self.algorithm == "adam" and self.weight_decay:
            raise UserError(
                f"optim.weight_decay is {self.weight_decay:g}, but adam has no weight decay: use optim.algorithm adamw"
            )
        if self.state == "int8" and self.algorithm not in ("adamw", "adam"):
            raise UserError(
                f"optim.state is int8, but {self.algorithm} only stores float32: use optim.algorithm adamw or adam, or "
                "optim.state float32"
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How training is distributed, checkpointed and compiled.

    These settings change a step only up to rounding, so a run may resume with other values. (Dropout and
    `train.shuffle_captions` are drawn per micro-batch, so with them another number of ranks draws others.)
    """

    # Ranks per replica of parameters, gradients, EMAs and optimizer state. 1: each rank holds a replica (DDP). The
    # world size or more: one replica, sharded over all ranks (FSDP2). Between: several sharded replicas (HSDP); the
    # number of GPUs per host is best.
    shard: int = 1
    # Blocks that recompute their activations in the backward pass: none, all, or those of `checkpoint_levels` (level 0
    # has the largest images). Training takes a quarter to a third longer and much less memory.
    checkpointing: Literal["none", "full", "selective"] = "none"
    checkpoint_levels: tuple[int, ...] = ()  # for checkpointing selective
    # torch.compile; takes minutes at the first start and seconds afterwards. None: on NVIDIA GPUs only.
    compile: bool | None = None

    def check(self, levels: int, world_size: int = 1) -> None:
        """Raise UserError, naming the field, unless the values fit a U-Net of `levels` levels and the world size."""
        check_number("parallel.shard", self.shard, least=1)
        if world_size > self.shard and world_size % self.shard:
            raise UserError(
                f"parallel.shard is {self.shard}, which is not a divisor of {world_size} ranks; "
                f"choose a divisor, or {world_size} to shard one replica over all ranks"
            )
        if (self.checkpointing == "selective") != bool(self.checkpoint_levels):
            raise UserError("parallel.checkpoint_levels requires parallel.checkpointing selective: set both or neither")
        for level in self.checkpoint_levels:
            check_number("parallel.checkpoint_levels", level, least=0, below=levels)


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
