"""Noise schedules: time t in [0, 1] to log signal-to-noise ratio lambda.

The forward process is variance preserving, so lambda determines the noise level:

    x_t = alpha x0 + sigma eps,   alpha^2 = sigmoid(lambda),   sigma^2 = sigmoid(-lambda),   SNR = alpha^2 / sigma^2.

t = 0 is (almost) clean, t = 1 is (almost) pure noise, and lambda decreases in t.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from imagen import limits
from imagen.errors import UserError

STEPS = 1000  # of the discrete schedule

DiscreteSteps = Literal["leading", "trailing", "linspace"]
NoiseLabel = Callable[[Tensor], Tensor]  # lambda -> noise label in [0, 1000]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Configure a noise schedule."""

    # discrete_cosine: the 1000 noise levels of DeepFloyd IF and other models after Improved DDPM.
    kind: Literal["cosine", "linear", "discrete_cosine"] = "cosine"
    # Shifted schedule (Simple Diffusion, 2301.11093, eq. 4): lambda += 2 log(reference / resolution).
    shift_reference: int | None = None
    # Values of lambda at t = 1 and t = 0, before the shift; without them lambda would be infinite there.
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0  # see logsnr_min
    # Only for discrete_cosine, which ignores the range: the steps that a sampler takes, see `DiscreteCosine.times`.
    discrete_steps: DiscreteSteps = "leading"

    def __post_init__(self) -> None:
        if not -30 <= self.logsnr_min < self.logsnr_max <= 30:
            raise UserError(
                f"a schedule needs -30 <= logsnr_min < logsnr_max <= 30, not {self.logsnr_min} and {self.logsnr_max}"
            )
        limits.check(self, limits.SCHEDULE, "a schedule's ")
        if self.kind == "linear" and self.logsnr_max <= -10:
            raise UserError(f"a linear schedule ends at -10.05: logsnr_max is {self.logsnr_max}; it must be above -10")
        if self.kind == "discrete_cosine" and self.shift_reference is not None:
            raise UserError("a discrete schedule cannot be shifted: leave shift_reference out")

    def check_steps(self, where: str, steps: int) -> None:
        """Raise UserError, beginning with `where`, unless a sampler can take `steps` steps."""
        if self.kind == "discrete_cosine" and steps > STEPS:
            raise UserError(f"{where}: steps is {steps}; its schedule is discrete and has {STEPS}")


class Schedule(Protocol):
    """Map times of any shape, in [0, 1], to lambda, on the same device and in the same dtype.

    Implementations compute in float64, because a float32 tangent near t = 1 loses half of its digits.
    """

    def __call__(self, t: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Cosine:
    """Use alpha = cos(pi t / 2) (2102.09672), with t mapped linearly to the interval where lambda is in its range."""

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __call__(self, t: Tensor, /) -> Tensor:
        angle_min, angle_max = math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(-self.logsnr_min / 2))
        angle = angle_min + t.double() * (angle_max - angle_min)
        return (-2 * angle.tan().log()).to(t.dtype)


@dataclass(frozen=True)
class Linear:
    """Use the continuous limit of betas from 1e-4 to 0.02 in 1000 steps.

    Score SDE (2011.13456), eq. 32 with beta_min = 0.1 and beta_max = 20: -log alpha^2 = 0.1 t + (20 - 0.1) t^2 / 2.
    t is mapped linearly to the interval where lambda is in its range; lambda is at least -10.05, its value at t = 1.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __call__(self, t: Tensor, /) -> Tensor:
        first, last = self._time(self.logsnr_max), min(1.0, self._time(self.logsnr_min))
        t64 = first + t.double() * (last - first)
        minus_log_alpha2 = 0.1 * t64 + 9.95 * t64.square()
        return (-minus_log_alpha2.expm1().log()).to(t.dtype)  # SNR = 1 / (1 / alpha^2 - 1)

    @staticmethod
    def _time(logsnr: float) -> float:
        """Return the time, perhaps above 1, at which lambda is `logsnr`."""
        minus_log_alpha2 = math.log1p(math.exp(-logsnr))
        return 2 * minus_log_alpha2 / (0.1 + math.sqrt(0.01 + 4 * 9.95 * minus_log_alpha2))


@dataclass(frozen=True)
class Shifted:
    """Add a constant to a schedule, for equal SNR after averaging pixels (Simple Diffusion, 2301.11093, eq. 4)."""

    schedule: Schedule
    shift: float

    def __call__(self, t: Tensor, /) -> Tensor:
        return self.schedule(t) + self.shift


@dataclass(frozen=True)
class DiscreteCosine:
    """Use 1000 noise levels: alpha_n^2 = prod_(i <= n) (1 - beta_i), n = floor(1000 t), with squared-cosine betas.

    Improved DDPM (2102.09672), eq. 17: beta_i = min(0.999, 1 - f(i + 1) / f(i)) with
    f(i) = cos^2(pi/2 (i/1000 + s) / (1 + s)), s = 0.008. lambda decreases from 10.1 (n = 0) to -19.8 (n = 999).
    """

    steps: DiscreteSteps = "leading"

    def __call__(self, t: Tensor, /) -> Tensor:
        # Times are rounded multiples of 1/1000, so 1000 t may be slightly below an integer.
        n = (t.double() * STEPS).add(1e-4).floor().clamp(0, STEPS - 1).long()
        return _discrete_logsnrs().to(t.device)[n].to(t.dtype)

    def label(self, logsnr: Tensor, /) -> Tensor:
        """Return the step n with the nearest lambda, float32: the noise label of training."""
        midpoints = _midpoints if isinstance(logsnr, FakeTensor) else _cached_midpoints
        return (STEPS - 1 - torch.bucketize(logsnr, midpoints(logsnr.device, logsnr.dtype))).float()

    def times(self, steps: int) -> Tensor:
        """Return the times of `steps` of the 1000 levels, then 0: decreasing, [steps + 1], float64.

        As in diffusers: "leading" takes n = 0, k, 2k, ... with k = 1000 // steps; "trailing" 999, 999 - 1000 / steps,
        ...; "linspace" is even from 999 to 0.
        """
        if self.steps == "leading":
            n = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (STEPS // steps)
        elif self.steps == "trailing":
            n = (STEPS - torch.arange(steps, dtype=torch.float64) * STEPS / steps).round() - 1
        else:
            n = torch.from_numpy(np.linspace(0, STEPS - 1, steps).round()).flip(0)  # torch rounds 499.5 differently
        return torch.cat([n, torch.zeros(1, dtype=torch.float64)]) / STEPS


def _discrete_logsnrs() -> Tensor:
    """Return lambda of n = 0 .. 999, float64, decreasing."""
    return torch.tensor(_discrete_logsnr_list(), dtype=torch.float64)


@functools.cache
def _discrete_logsnr_list() -> list[float]:
    # Not a tensor: one that is made in a dry run on fake tensors is fake, and the cache would return it ever after.
    cosine2 = np.square(np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * math.pi / 2))
    alpha2 = np.cumprod(1 - np.minimum(1 - cosine2[1:] / cosine2[:-1], 0.999))
    logsnrs: list[float] = np.log(alpha2 / (1 - alpha2)).tolist()
    return logsnrs


def _midpoints(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the midpoints between adjacent levels, increasing."""
    logsnrs = _discrete_logsnrs().flip(0)
    return ((logsnrs[1:] + logsnrs[:-1]) / 2).to(dtype).to(device)  # Apple's GPUs have no float64


_cached_midpoints = functools.lru_cache(maxsize=8)(_midpoints)  # a copy to the device in every step would block


def build_schedule(config: ScheduleConfig, resolution: int) -> Schedule:
    """Return the schedule of a model for images of `resolution` pixels per side."""
    schedule: Schedule
    if config.kind == "discrete_cosine":
        return DiscreteCosine(config.discrete_steps)
    if config.kind == "cosine":
        schedule = Cosine(config.logsnr_min, config.logsnr_max)
    else:
        schedule = Linear(config.logsnr_min, config.logsnr_max)
    if config.shift_reference is None:
        return schedule
    return Shifted(schedule, 2 * math.log(config.shift_reference / resolution))


def alpha_sigma(logsnr_B: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) at lambda, [B]; with `like` [B, ...], shaped [B, 1, ...] to multiply it."""
    if like is not None:
        logsnr_B = logsnr_B.reshape(-1, *[1] * (like.ndim - 1))
    return logsnr_B.sigmoid().sqrt(), (-logsnr_B).sigmoid().sqrt()


def diffuse(x0: Tensor, eps: Tensor, logsnr_B: Tensor) -> Tensor:
    """Return x_t = alpha x0 + sigma eps, for images [B, ...] and standard normal noise of the same shape."""
    alpha, sigma = alpha_sigma(logsnr_B.to(x0.dtype), like=x0)
    return alpha * x0 + sigma * eps


def noise_label(logsnr: Tensor) -> Tensor:
    """Return the noise label of lambda: 1000 times the time at which a cosine schedule has this lambda.

    In [0, 1000], the range for which sinusoidal embeddings of 1000 discrete steps were designed: 0 is clean, 500 is
    SNR 1, 1000 is pure noise. Independent of the model's schedule.
    """
    return 2000 / math.pi * torch.atan(torch.exp(-logsnr / 2))


def build_label(config: ScheduleConfig) -> NoiseLabel:
    """Return the noise label function of a schedule: the nearest step of a discrete one, else `noise_label`."""
    return DiscreteCosine().label if config.kind == "discrete_cosine" else noise_label


def bind_label(config: ScheduleConfig, device: torch.device) -> NoiseLabel:
    """Return `build_label` for float32 log-SNRs on `device`, without Python caches, for compiled functions."""
    if config.kind != "discrete_cosine":
        return noise_label
    midpoints = _midpoints(device, torch.float32)
    return lambda logsnr: (STEPS - 1 - torch.bucketize(logsnr, midpoints)).float()


def step_times(schedule: Schedule, steps: int) -> Tensor:
    """Return the times of `steps` sampler steps, then 0: decreasing from about 1, [steps + 1], float64."""
    if isinstance(schedule, DiscreteCosine):
        return schedule.times(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
