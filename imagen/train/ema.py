"""Exponential moving average of the weights: what is sampled and exported."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """theta_ema <- d_s theta_ema + (1 - d_s) theta after step s, with d_s = min(decay, (1 + s) / (10 + s)).

    The warm-up of the decay makes the average cover about the last tenth of a short run
    (a plain 0.9999 would still hold the random initial weights after 10,000 steps).

    Lists of tensors rather than a copy of the module: a sharded model can be averaged the same way.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after step 1, 2, ..."""
        torch._foreach_lerp_(list(self.weights.values()), list(model.parameters()), 1 - self.decay_at(step))

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Inside the block `model` carries the averaged weights; they are exchanged in place, not copied."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for average, parameter in zip(self.weights.values(), model.parameters(), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with averaged parameters: contiguous on the CPU, floating point as float32."""
        state = {**model.state_dict(), **self.weights}
        return {
            name: value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True).contiguous()
            for name, value in state.items()
        }

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of a checkpoint; KeyError or RuntimeError if they are another model's."""
        for name, average in self.weights.items():
            average.copy_(weights[name])
