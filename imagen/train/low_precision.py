"""A low-precision copy of a network, used for the forward and backward pass instead of the float32 master weights.

Autocast casts every weight at each use, and its gradient in the backward pass; these casts are nearly half of a step's
operations. With a copy, all weights are cast together once per step, and all gradients once per micro-batch. Gradients
accumulate in float32.
"""

import torch
from torch import Tensor

from imagen.models.unet import UNet, cast_copy


class LowPrecisionCopy:
    """A copy of `unet` in `dtype`: `network` computes the loss, and the optimizer updates the parameters of `unet`."""

    def __init__(self, unet: UNet, dtype: torch.dtype):
        self.network = cast_copy(unet, dtype)
        pairs = list(zip(unet.parameters(), self.network.parameters(), strict=True))
        self._frozen = [pair for pair in pairs if not pair[0].requires_grad]  # copied once
        trained = [pair for pair in pairs if pair[0].requires_grad]
        self._master: list[Tensor] = [master for master, _ in trained]
        self._copies: list[Tensor] = [copy for _, copy in trained]

    @torch.no_grad()
    def copy_weights(self) -> None:
        """Copy the master weights into the network."""
        for master, copy in self._frozen:  # a checkpoint may have been loaded since the copy was made
            copy.copy_(master)
        self._frozen = []
        torch._foreach_copy_(self._copies, self._master)

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Add the network's gradients to those of the master weights, and clear the network's."""
        pairs = zip(self._master, self._copies, strict=True)
        trained = [(master, copy.grad) for master, copy in pairs if copy.grad is not None]
        gradients = [gradient for _, gradient in trained]
        if first := all(master.grad is None for master, _ in trained):
            for master, _ in trained:
                master.grad = torch.empty_like(master)
        sums = [master.grad for master, _ in trained if master.grad is not None]
        if first:
            torch._foreach_copy_(sums, gradients)
        else:
            torch._foreach_add_(sums, gradients)
        for copy in self._copies:
            copy.grad = None
