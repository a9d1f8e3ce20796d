"""Noise schedules: time t in [0, 1] to log signal-to-noise ratio lambda.

The process is variance preserving and lambda says everything about a noise level:

    x_t = alpha x0 + sigma eps,   alpha^2 = sigmoid(lambda),   sigma^2 = sigmoid(-lambda),   SNR = alpha^2 / sigma^2.

t = 0 is (almost) clean, t = 1 is (almost) pure noise, and lambda falls in between.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from imagen.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["cosine", "linear"] = "cosine"
    # Shifted schedule (Simple Diffusion, 2301.11093, eq. 4): lambda += 2 log(reference / resolution).
    shift_reference: int | None = None
    # Range of lambda before the shift; the ends are where t = 1 and t = 0 would be infinite.
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __post_init__(self) -> None:
        if not -30 <= self.logsnr_min < self.logsnr_max <= 30:
            raise UserError(
                f"a schedule needs -30 <= logsnr_min < logsnr_max <= 30, not {self.logsnr_min} and {self.logsnr_max}"
            )
        if self.shift_reference is not None and self.shift_reference <= 0:
            raise UserError(f"a schedule's shift_reference is a picture side in pixels, not {self.shift_reference}")


class Schedule(Protocol):
    """Maps times of any shape, in [0, 1], to lambda, on the same device and in the same dtype.

    Inside, schedules compute in float64: a float32 tangent near t = 1 loses half of its digits.
    """

    def __call__(self, t: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2) (2102.09672), with t mapped linearly into the interval where lambda keeps to its range."""

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __call__(self, t: Tensor, /) -> Tensor:
        angle_min, angle_max = math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(-self.logsnr_min / 2))
        angle = angle_min + t.double() * (angle_max - angle_min)
        return (-2 * angle.tan().log()).to(t.dtype)


@dataclass(frozen=True)
class Linear:
    """The continuous limit of betas from 1e-4 to 0.02 in 1000 steps, clamped to the range.

    Score SDE (2011.13456), eq. 32 with beta_min = 0.1 and beta_max = 20: -log alpha^2 = 0.1 t + (20 - 0.1) t^2 / 2.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __call__(self, t: Tensor, /) -> Tensor:
        t64 = t.double()
        minus_log_alpha2 = 0.1 * t64 + 9.95 * t64.square()
        logsnr = -minus_log_alpha2.expm1().log()  # SNR = 1 / (1 / alpha^2 - 1); infinite at t = 0
        return logsnr.clamp(self.logsnr_min, self.logsnr_max).to(t.dtype)


@dataclass(frozen=True)
class Shifted:
    """Another schedule plus a constant: the same SNR after averaging pixels (Simple Diffusion, 2301.11093, eq. 4)."""

    schedule: Schedule
    shift: float

    def __call__(self, t: Tensor, /) -> Tensor:
        return self.schedule(t) + self.shift


def build_schedule(config: ScheduleConfig, resolution: int) -> Schedule:
    """The schedule of a model that makes pictures of `resolution` pixels a side."""
    schedule: Schedule
    if config.kind == "cosine":
        schedule = Cosine(config.logsnr_min, config.logsnr_max)
    else:
        schedule = Linear(config.logsnr_min, config.logsnr_max)
    if config.shift_reference is None:
        return schedule
    return Shifted(schedule, 2 * math.log(config.shift_reference / resolution))


def alpha_sigma(logsnr_B: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at lambda; with `like` [B, ...], shaped [B, 1, ...] to multiply it."""
    if like is not None:
        logsnr_B = logsnr_B.reshape(-1, *[1] * (like.ndim - 1))
    return logsnr_B.sigmoid().sqrt(), (-logsnr_B).sigmoid().sqrt()


def diffuse(x0: Tensor, eps: Tensor, logsnr_B: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps, for [B, ...] pictures and standard normal noise of the same shape."""
    alpha, sigma = alpha_sigma(logsnr_B.to(x0.dtype), like=x0)
    return alpha * x0 + sigma * eps


def noise_label(logsnr: Tensor) -> Tensor:
    """What a network is told about its noise level: the time of a cosine schedule with this lambda, times 1000.

    In [0, 1000], the range that sinusoidal embeddings of 1000 discrete steps were made for, whatever the schedule
    of the model: 0 is clean, 500 is SNR 1, 1000 is pure noise.
    """
    return 2000 / math.pi * torch.atan(torch.exp(-logsnr / 2))
