"""Ancestral sampling, as in DDPM."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers.base import Sampler, Step, check_share, coefficients
from imagen.diffusion.samplers.registry import register


@register("ddpm")
@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling, x_s ~ p(x_s given x_t) (2006.11239); the paper's presets take 250 steps.

    p is the posterior of x_s given x_t and the x0 estimate. Its log variance is f log beta + (1 - f) log beta~, between
    its upper bound beta and its lower bound beta~. f is the estimate's variance if it has one (2102.09672), else
    `gamma`, in [0, 1].
    """

    order: ClassVar[int] = 1
    gamma: float = 0.3

    def __post_init__(self) -> None:
        check_share("gamma", self.gamma)

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, step: Step, /) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(step.t), coefficients(step.s)
        one_minus_eh = -math.expm1(step.t - step.s)  # 1 - SNR_t / SNR_s
        mean = math.exp(step.t - step.s) * alpha_s / alpha_t * step.x + one_minus_eh * alpha_s * step.estimate.x0
        if sigma_s == 0:
            return mean
        # beta = (1 - e^-h) sigma_t^2 and beta~ = (1 - e^-h) sigma_s^2, so the standard deviation is
        # sqrt(1 - e^-h) sigma_s (sigma_t / sigma_s)^f.
        f = self.gamma if step.estimate.variance is None else step.estimate.variance
        return mean + math.sqrt(one_minus_eh) * sigma_s * (sigma_t / sigma_s) ** f * step.noise()
