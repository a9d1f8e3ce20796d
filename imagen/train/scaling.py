"""The loss scale of float16 training: small gradients would underflow.

The loss is multiplied by the scale before the backward pass, and the gradient divided by it after. The scale halves
when a gradient overflows, and that step is skipped; it doubles after many steps without (1710.03740, section 3.2).
"""

from dataclasses import dataclass

import torch

GROWTH_STEPS = 2000  # without an overflow, after which the scale doubles
START, SMALLEST, LARGEST = 2.0**16, 1.0, 2.0**24


@dataclass
class LossScale:
    """The scale, and the number of steps since it changed: part of a run's state."""

    value: float = 1.0
    steps: int = 0  # since the scale changed
    active: bool = False  # in other formats the scale is always 1

    @classmethod
    def build(cls, dtype: torch.dtype | None) -> "LossScale":
        """Return the initial scale for the autocast format `dtype`."""
        return cls(START, 0, True) if dtype is torch.float16 else cls()

    def overflowed(self) -> bool:
        """Record a non-finite gradient with finite losses. Returns False if the scale is not the cause."""
        if not self.active or self.value <= SMALLEST:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def held(self) -> None:
        """Record a step without an overflow."""
        self.steps += 1
        if self.active and self.steps >= GROWTH_STEPS:
            self.value, self.steps = min(self.value * 2, LARGEST), 0
