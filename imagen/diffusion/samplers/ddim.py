"""DDIM."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers.base import Sampler, Step, check_share, coefficients, noise_factor
from imagen.diffusion.samplers.registry import register


@register("ddim")
@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """DDIM (2010.02502): deterministic at `eta` 0, `ddpm` with `gamma` 0 at `eta` 1.

    Equations 12 and 16. eta: scale of the noise, in [0, 1]. damping: see `noise_factor`.
    """

    order: ClassVar[int] = 1
    eta: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_share("eta", self.eta)
        check_share("damping", self.damping)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, step: Step, /) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(step.t), coefficients(step.s)
        eta2_beta = -(self.eta**2) * math.expm1(step.t - step.s)  # added variance / sigma_s^2
        # x_s = alpha_s x0 + sigma_s sqrt(1 - eta2_beta) eps + sigma_s sqrt(eta2_beta) z, with eps from x_t and x0.
        keep = sigma_s / sigma_t * math.sqrt(1 - eta2_beta) * noise_factor(self.damping, step.s - step.t)
        x_s = keep * step.x + (alpha_s - keep * alpha_t) * step.estimate.x0
        if eta2_beta == 0 or sigma_s == 0:
            return x_s
        return x_s + sigma_s * math.sqrt(eta2_beta) * step.noise()


def implied_x0(x_t: Tensor, x_s: Tensor, t: float, s: float, damping: float = 0.0) -> Tensor:
    """Return the x0 estimate with which one deterministic step from x_t at log-SNR t gives x_s at s > t.

    The target of progressive distillation (2202.00512, appendix G). At s = +infinity it is x_s.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
    keep = sigma_s / sigma_t * noise_factor(damping, s - t) if sigma_s else 0.0
    return (x_s - keep * x_t) / (alpha_s - keep * alpha_t)
