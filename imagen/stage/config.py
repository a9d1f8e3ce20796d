"""Define the configuration of a stage and its sampling defaults."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from imagen import limits
from imagen.diffusion.objective import ObjectiveConfig
from imagen.diffusion.samplers.base import Sampler, Spacing
from imagen.diffusion.samplers.registry import create_sampler, option_names
from imagen.diffusion.schedule import ScheduleConfig
from imagen.errors import UserError, check_number, suggest
from imagen.models.config import UNetConfig
from imagen.stage.resize import Filter

OPTION_FIELDS = ("eta", "gamma", "damping")  # fields of SamplingConfig that are options of samplers
Variance = Literal["learned", "fixed"]
Threshold = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Configure the sampling defaults of a stage."""

    sampler: str = "dpmpp_2m"  # a name in `imagen.diffusion.samplers`
    steps: int = 50  # of the sampler
    spacing: Spacing = "time"  # uniform in the schedule's time, or in log-SNR over `logsnr_range`; see step_logsnrs
    logsnr_range: tuple[float, float] = (-9.0, 14.0)  # log-SNR of the first and the last step
    guidance: float = 5.0  # guidance scale w: x0 = uncond + w (cond - uncond); 1 is no guidance
    guidance_interval: tuple[float, float] | None = None  # log-SNR range with guidance; None: everywhere
    guidance_rescale: float = 0.0  # 0 to 1: how far guided x0 estimates get the contrast of unguided ones
    threshold: Threshold = "dynamic"  # of x0 estimates: clipped to [-1, 1], or to a quantile and rescaled
    percentile: float = 0.995  # dynamic thresholding: the quantile
    max_scale: float | None = None  # dynamic thresholding: upper bound of s; None: no bound
    eta: float = 0.0  # ddim: scale of the noise; 0: none
    damping: float = 0.0  # dpmpp_2m, heun, ddim: noise decreases 1 + damping times as fast; see `noise_factor`
    # ddpm: "learned" uses the network's variance if it predicts one. "fixed" always uses `gamma`, for a network that
    # was fine-tuned without the variance loss and so predicts a wrong variance.
    variance: Variance = "learned"
    gamma: float = 0.3  # ddpm: log variance between the lower (0) and the upper (1) bound
    low_res_noise: float = 0.1  # level a of conditioning augmentation, in [0, 1]
    sampler_options: dict[str, float] = field(default_factory=dict)  # options of the sampler without a field here

    def build_sampler(self) -> Sampler:
        """Return the sampler with those options that it has. Raises UserError for an unknown sampler option."""
        fields = {name: getattr(self, name) for name in option_names(self.sampler) if name in OPTION_FIELDS}
        return create_sampler(self.sampler, {**fields, **self.sampler_options})

    def check(self, where: str) -> None:
        """Raise UserError, beginning with `where`, unless every value is in its range."""
        try:
            for name, option in self.sampler_options.items():
                check_number(f"sampler option {name}", option)
            self.build_sampler()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for name, kind in (("spacing", Spacing), ("threshold", Threshold), ("variance", Variance)):
            known = get_args(kind)
            value = getattr(self, name)
            if value not in known:
                hint = suggest(str(value), known, f"choose {', '.join(known)}")
                raise UserError(f"{where}: unknown {name} {value!r}{hint}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UserError(f"{where}: steps is {self.steps!r}; it must be a whole number, 1 or more")
        if not math.isfinite(self.guidance):
            raise UserError(f"{where}: guidance is {self.guidance}; it must be a finite number (1 is no guidance)")
        limits.check(self, limits.SAMPLING, f"{where}: ")
        for name in ("guidance_rescale", "low_res_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{where}: {name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 < self.percentile <= 1:
            raise UserError(f"{where}: percentile is {self.percentile}; it must be above 0 and at most 1")
        if self.max_scale is not None and not 1 <= self.max_scale < math.inf:
            raise UserError(f"{where}: max_scale is {self.max_scale}; it must be 1 or more, or null for no limit")
        for name in ("guidance_interval", "logsnr_range"):
            pair = getattr(self, name)
            if pair is not None and not -math.inf < pair[0] < pair[1] < math.inf:
                raise UserError(f"{where}: {name} is ({pair[0]}, {pair[1]}); it must be (lower, upper) log-SNR")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Configure a stage: everything that is needed to build and sample it, except its weights."""

    resolution: int  # side of the images that the stage generates, in pixels
    unet: UNetConfig  # the network
    low_resolution: int | None = None  # side of the low-resolution image; None: a base stage
    # (height, width) of the images that the stage was trained on; empty: squares of `resolution`, or crops of any image
    sizes: tuple[tuple[int, int], ...] = ()
    # Super-resolution only: diffuse the detail (x0 - upsampled low-resolution image) / detail_std in place of x0
    # (SRDiff, 2104.14951). An untrained network then gives the upsampled image, not noise, and all its errors are
    # scaled by detail_std. Set it to the root mean square of x0 - upsampled, blurred if so, on the training data.
    detail_std: float | None = None
    # Blur the upsampled image that is subtracted and added, so that textures and halos of a generated low-resolution
    # image reach the output only through the network. Standard deviation in low-resolution pixels; 0: no blur
    detail_blur: float = 0.0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # noise levels of training and sampling
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)  # prediction type and weighting of the loss
    low_res_schedule: ScheduleConfig = field(
        default_factory=ScheduleConfig
    )  # of conditioning augmentation: level a -> log-SNR
    low_res_filter: Filter = "bicubic"  # for upsampling the low-resolution image
    sampling: SamplingConfig = field(default_factory=SamplingConfig)  # defaults of sampling, also for sample grids

    def __post_init__(self) -> None:
        limits.check(self, limits.STAGE)
        check_number("the number of sizes", len(self.sizes), most=limits.SIZES)
        for side in itertools.chain(*self.sizes):
            check_number("a side in sizes", side, least=1, most=limits.SIDE)

    def check(self, where: str) -> None:
        """Raise UserError, beginning with `where`, unless the sizes fit each other and the U-Net."""
        low, stride = self.low_resolution, self.unet.total_stride
        if self.unet.low_res != (low is not None):
            raise UserError(
                f"{where}.unet.low_res is {self.unet.low_res} and {where}.low_resolution {low}: "
                "a super-resolution stage needs both, a base stage neither"
            )
        if low is not None and (not 0 < low < self.resolution or self.resolution % low):
            raise UserError(f"{where}.low_resolution is {low}; it must be below {self.resolution} and divide it")
        if self.detail_std is not None and low is None:
            raise UserError(f"{where}.detail_std is for super-resolution stages; set {where}.low_resolution too")
        if self.detail_blur and self.detail_std is None:
            raise UserError(f"{where}.detail_blur has no effect without {where}.detail_std")
        for height, width in self.sizes:
            if height % stride or width % stride:
                raise UserError(
                    f"{where}.sizes has [{height}, {width}]; this U-Net takes sides that are divisible by {stride}"
                )
        if self.resolution % stride:
            raise UserError(
                f"{where}.resolution is {self.resolution}; this U-Net takes sides that are divisible by {stride}"
            )
        self.sampling.check(f"{where}.sampling")
