"""Define a sampler in one file: DPM-Solver++(2S), second order with two network evaluations per step.

    python examples/sampler.py sample emoji "a red apple" --sampler dpmpp_2s --steps 10 --out images
    python examples/sampler.py sample --help

In a program, import this file and call `cascade.sample("a red apple", sampler="dpmpp_2s")`. To make it part of the
package, copy it to `imagen/diffusion/samplers/dpmpp_2s.py`; no other change is needed.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imagen.diffusion.samplers import Sampler, Step, register
from imagen.diffusion.samplers.base import exponential_step
from imagen.errors import check_number


@register("dpmpp_2s")
@dataclass(frozen=True, kw_only=True)
class DPMpp2S(Sampler):
    """DPM-Solver++(2S) (2211.01095, algorithm 1): two network evaluations per step, one in the last step.

    middle: position of the second evaluation in a step, above 0 (the beginning) and at most 1 (the end).
    """

    order: ClassVar[int] = 2
    middle: float = 0.5

    def __post_init__(self) -> None:
        check_number("middle", self.middle, above=0, most=1)

    def step(self, step: Step, /) -> Tensor:
        x0 = step.estimate.x0
        if step.s == math.inf:
            return x0
        between = step.t + self.middle * (step.s - step.t)
        x = exponential_step(step.x, x0, step.t, between)
        x0 = x0 + (step.evaluate(x, between).x0 - x0) / (2 * self.middle)
        return exponential_step(step.x, x0, step.t, step.s)


if __name__ == "__main__":
    from imagen.cli import main

    main()
