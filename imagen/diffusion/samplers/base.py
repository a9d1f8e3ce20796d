"""Define the common parts of all samplers: the loop, the arguments of a step, and the log-SNRs of the steps.

Notation: a step goes from log-SNR t to log-SNR s > t; x is the noised image, x0 the estimate of the clean image, alpha
and sigma the coefficients of x = alpha x0 + sigma noise. Coefficients are Python floats (float64); x keeps its dtype.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from imagen.diffusion.guidance import Denoiser, Estimate, batch_logsnr
from imagen.diffusion.schedule import DiscreteCosine, Schedule, step_times
from imagen.errors import UserError

Spacing = Literal["time", "logsnr", "auto"]
Levels = Tensor | Sequence[float]
Noise = Callable[[], Tensor]  # the next standard normal tensor, shaped like x
OnStep = Callable[[int, int, Tensor, Tensor], None]  # (i, N, x after step i, x0 estimate of step i)


@dataclass(frozen=True)
class Step:
    """The arguments of a sampler's step."""

    x: Tensor  # x_t, [B, C, H, W]
    estimate: Estimate  # of the clean image, from x_t
    t: float  # log-SNR of x
    s: float  # log-SNR of the result; +infinity in the last step of a whole run: alpha = 1, sigma = 0
    last: bool
    before: tuple[tuple[float, Tensor], ...]  # (t, x0 estimate) of the last `Sampler.history` steps, newest first
    denoise: Denoiser  # for samplers that evaluate the network more than once per step
    noise: Noise

    def evaluate(self, x: Tensor, logsnr: float) -> Estimate:
        """Evaluate the network once more, at another x and log-SNR."""
        return self.denoise(x, batch_logsnr(x, logsnr))


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Base class of samplers, numerical methods for the reverse process.

    Subclasses are frozen dataclasses, and their fields are the options. They implement `step` and, if options have
    ranges, a `__post_init__` that raises UserError, for example by `check_share`. They have no state: `Step.before`
    holds earlier estimates.
    """

    order: ClassVar[int] = 1  # halving the step size divides the error by 2^order
    history: ClassVar[int] = 0  # how many earlier x0 estimates a step reads

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @abstractmethod
    def step(self, step: Step, /) -> Tensor:
        """Return x at log-SNR s. At s = +infinity the result is an estimate of x0, without noise."""

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoiser,
        x: Tensor,
        logsnrs: Levels,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Return x at the last of `logsnrs`, starting from x at the first.

        logsnrs: increasing, lambda_0 < ... < lambda_N (1-D, float64); the denoiser is called at lambda_0 ...
            lambda_{N-1}. The last one of `step_logsnrs` is +infinity: clean images. A finite one gives x at that noise
            level, for tests or to stop early.
        noise: required by stochastic samplers. on_step: called after each step.
        Raises ValueError if logsnrs do not increase, or if a stochastic sampler gets no noise.
        """
        levels = [float(logsnr) for logsnr in logsnrs]
        if len(levels) < 2 or any(not t < s for t, s in pairwise(levels)):
            raise ValueError("logsnrs must increase and have at least two entries")
        if noise is None and self.stochastic:
            raise ValueError(f"{self} needs noise")
        steps = len(levels) - 1
        before: tuple[tuple[float, Tensor], ...] = ()
        for i, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, batch_logsnr(x, t))
            x = self.step(Step(x, estimate, t, s, i == steps - 1, before, denoise, noise or _no_noise))
            before = ((t, estimate.x0), *before)[: self.history]
            if on_step is not None:
                on_step(i, steps, x, estimate.x0)
        return x


def step_logsnrs(
    schedule: Schedule, steps: int, *, spacing: Spacing = "time", logsnr_range: tuple[float, float] = (-9.0, 14.0)
) -> Tensor:
    """Return the log-SNRs of `steps` steps, [steps + 1], float64; the last is infinite.

    spacing: "time" takes the schedule's `step_times`, uniform from t = 1 unless it is discrete. "logsnr" is uniform in
    log-SNR from the lower to the upper end of `logsnr_range`; the last step goes from there to clean images. The range
    is clipped to that of the schedule, beyond which the network was not trained. "auto" is "time" for a discrete
    schedule, because its network was trained only at the schedule's levels, and "logsnr" for others.
    Raises UserError if the range and that of the schedule do not overlap.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    t = step_times(schedule, steps)
    if spacing == "time" or (spacing == "auto" and isinstance(schedule, DiscreteCosine)):
        logsnrs = schedule(t)
    else:
        first, last = (float(schedule(t[end])) for end in (0, -1))
        low, high = max(logsnr_range[0], first), min(logsnr_range[1], last)
        if low >= high:
            raise UserError(
                f"logsnr_range is ({logsnr_range[0]:g}, {logsnr_range[1]:g}), but the noise schedule has "
                f"{first:.0f} to {last:.0f}: choose a range that overlaps with it"
            )
        logsnrs = torch.cat([torch.linspace(low, high, steps, dtype=torch.float64), t[-1:]])
    logsnrs[-1] = math.inf
    return logsnrs


def coefficients(logsnr: float) -> tuple[float, float]:
    """Return alpha and sigma of a log-SNR, +infinity included."""
    return math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))


def exponential_step(x: Tensor, x0: Tensor, t: float, s: float, damping: float = 0.0) -> Tensor:
    """Return x_s for an x0 that is constant from t to s: the exact solution of the ODE's linear part, DDIM's step."""
    (_, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    # The papers' lambda is log(alpha / sigma), half of the log-SNR, and so is their h.
    keep = sigma_s / sigma_t * noise_factor(damping, s - t)
    return keep * x - alpha_s * math.expm1((1 + damping) * (t - s) / 2) * x0


def noise_factor(damping: float, h: float) -> float:
    """Return the factor e^(-d h / 2) of the noise (x - alpha x0) / sigma in a step of length h; d is `damping`.

    The noise then decreases 1 + d times as fast as in the probability-flow ODE, which is d = 0. This compensates for
    exposure bias: errors of a network act as additional noise, beyond the nominal noise level (2308.15321, which scales
    the noise of each step by a constant).
    """
    return math.exp(-damping * h / 2) if damping else 1.0  # the last h is infinite


def check_share(name: str, value: float) -> None:
    """Raise UserError unless the option is in [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}; it must be from 0 to 1")


def _no_noise() -> Tensor:
    raise ValueError("this sampler draws noise: its property `stochastic` must be True")
