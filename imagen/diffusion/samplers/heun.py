"""Heun's method, as in EDM."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers.base import Sampler, Step, check_share, exponential_step
from imagen.diffusion.samplers.registry import register


@register("heun")
@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Heun's method of EDM (2206.00364): second order, two network evaluations per step, one in the last.

    Algorithm 1, for the ODE in log-SNR. Its linear part is solved exactly, so a step is one of DDIM with the mean of
    the x0 estimates at its two ends, where the second end is found by a DDIM step. damping: see `noise_factor`.
    """

    order: ClassVar[int] = 2
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_share("damping", self.damping)

    def step(self, step: Step, /) -> Tensor:
        x0 = step.estimate.x0
        euler = exponential_step(step.x, x0, step.t, step.s, self.damping)
        if step.s == math.inf:
            return euler
        end = step.evaluate(euler, step.s)
        return exponential_step(step.x, (x0 + end.x0) / 2, step.t, step.s, self.damping)
