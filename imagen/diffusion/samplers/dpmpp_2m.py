"""DPM-Solver++(2M)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers.base import Sampler, Step, check_share, exponential_step
from imagen.diffusion.samplers.registry import register


@register("dpmpp_2m")
@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M) (2211.01095), the default: second order at one network evaluation per step.

    Algorithm 2. The first step has no history, and the last is infinitely long: both are first order, as in DDIM.
    damping: see `noise_factor`.
    """

    order: ClassVar[int] = 2
    history: ClassVar[int] = 1
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_share("damping", self.damping)

    def step(self, step: Step, /) -> Tensor:
        return exponential_step(step.x, extrapolated_x0(step), step.t, step.s, self.damping)


def extrapolated_x0(step: Step) -> Tensor:
    """Extrapolate x0 to the middle of a step, from the estimates at its start and at the start of the step before."""
    x0 = step.estimate.x0
    if not step.before or step.last:
        return x0
    t_before, x0_before = step.before[0]
    h, h_before = step.s - step.t, step.t - t_before
    return x0 + h / (2 * h_before) * (x0 - x0_before)
