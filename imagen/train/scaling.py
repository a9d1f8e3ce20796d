"""The loss scale of float16 training, without which small gradients would underflow.

The loss is multiplied by the scale before the backward pass, and the gradient is divided by it afterwards. If a
gradient overflows, the step is skipped and the scale is halved. After many steps without an overflow, the scale is
doubled (1710.03740, section 3.2).
"""

from dataclasses import dataclass

import torch

GROWTH_STEPS = 2000  # steps without an overflow after which the scale doubles
START, SMALLEST, LARGEST = 2.0**16, 1.0, 2.0**24


@dataclass
class LossScale:
    """The loss scale and the number of steps since it changed, as part of a run's state."""

    value: float = 1.0
    steps: int = 0  # since the scale changed
    active: bool = False  # False in other formats than float16: the scale is always 1

    @classmethod
    def build(cls, dtype: torch.dtype | None) -> "LossScale":
        """Return the initial scale for the autocast format `dtype`."""
        return cls(START, 0, True) if dtype is torch.float16 else cls()

    def record_overflow(self) -> bool:
        """Halve the scale after a non-finite gradient with finite losses; return False if that cannot be its cause."""
        if not self.active or self.value <= SMALLEST:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def record_success(self) -> None:
        """Count a step without an overflow, and double the scale after enough of them."""
        self.steps += 1
        if self.active and self.steps >= GROWTH_STEPS:
            self.value, self.steps = min(self.value * 2, LARGEST), 0
