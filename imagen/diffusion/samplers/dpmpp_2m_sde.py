"""SDE-DPM-Solver++(2M)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers.base import Sampler, Step, coefficients
from imagen.diffusion.samplers.dpmpp_2m import extrapolated_x0
from imagen.diffusion.samplers.registry import register


@register("dpmpp_2m_sde")
@dataclass(frozen=True, kw_only=True)
class DPMpp2MSDE(Sampler):
    """SDE-DPM-Solver++(2M) (2211.01095): `ddpm` with `gamma` 0, at the x0 estimate of `dpmpp_2m`."""

    order: ClassVar[int] = 2
    history: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, step: Step, /) -> Tensor:
        (_, sigma_t), (alpha_s, sigma_s) = coefficients(step.t), coefficients(step.s)
        one_minus_eh = -math.expm1(step.t - step.s)  # the paper's h is half of ours: its e^-2h is our e^-h
        x0 = extrapolated_x0(step)
        mean = sigma_s / sigma_t * math.exp((step.t - step.s) / 2) * step.x + alpha_s * one_minus_eh * x0
        return mean if sigma_s == 0 else mean + sigma_s * math.sqrt(one_minus_eh) * step.noise()
