"""A copy of a network in half precision, which computes, beside float32 parameters, which are trained.

Under autocast every weight is cast whenever it is used, and its gradient when it comes back: nearly half of a step's
operations. Here all are cast together, once a step there and once a micro-batch back, and gradients add up in float32.
"""

import torch
from torch import Tensor

from imagen.models.unet import UNet, cast_copy


class HalfCopy:
    """`network` computes as `unet` would, in `dtype`. Of it, only the parameters' numbers are ever exchanged."""

    def __init__(self, unet: UNet, dtype: torch.dtype):
        self.network = cast_copy(unet, dtype)
        self._parameters: list[Tensor] = list(unet.parameters())
        self._halves: list[Tensor] = list(self.network.parameters())

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the parameters."""
        torch._foreach_copy_(self._halves, self._parameters)

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        """Add the gradients to those of the parameters."""
        pairs = zip(self._parameters, self._halves, strict=True)
        reached = [(parameter, half.grad) for parameter, half in pairs if half.grad is not None]
        gradients = [gradient for _, gradient in reached]
        if first := all(parameter.grad is None for parameter, _ in reached):
            for parameter, _ in reached:
                parameter.grad = torch.empty_like(parameter)
        sums = [parameter.grad for parameter, _ in reached if parameter.grad is not None]
        if first:
            torch._foreach_copy_(sums, gradients)
        else:
            torch._foreach_add_(sums, gradients)
        for half in self._halves:
            half.grad = None
