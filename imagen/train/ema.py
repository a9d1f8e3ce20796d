"""Exponential moving averages of the weights: one for sampling and export, and others to choose from after training."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imagen.train.layout import named_weights
from imagen.train.posthoc import exponent
from imagen.train.sharded import distribute_like, full_tensor, local, reshard


class Ema:
    """theta_ema <- d_s theta_ema + (1 - d_s) theta after step s, with d_s = min(decay, (1 + s) / (10 + s)).

    With the warm-up of the decay, the average covers about the last tenth of a short run. With a constant decay of
    0.9999 it would still contain much of the random initial weights after 10,000 steps.

    Stores tensors rather than a copy of the module: each rank averages its own shards of a sharded model, so `weights`
    are sharded like the parameters. torch's AveragedModel cannot copy such a model. Frozen parameters are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in named_weights(model) if parameter.requires_grad
        }

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, since: int | None = None) -> None:
        """Update with the weights after `step`, which is at least 1.

        since: the step of the previous update, if steps were skipped: the weights count for all steps after it.
        """
        averages, parameters = self._pairs(model)
        decay = math.prod(self.decay_at(s) for s in range(step if since is None else since + 1, step + 1))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Swap the EMA weights into `model` inside the block, in place."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for average, parameter in zip(*self._pairs(model), strict=True):
            weights = parameter.clone()
            parameter.copy_(average)
            average.copy_(weights)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return this rank's shards of the EMA weights and of the parameters; frees gathered parameters first."""
        reshard(model)
        averages = [local(average) for average in self.weights.values()]
        return averages, [local(parameter.detach()) for name, parameter in named_weights(model) if name in self.weights]

    @torch.no_grad()
    def export(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return the model's state dict with EMA weights: full tensors on the CPU, floating point as `dtype`.

        All ranks call this together; the first gets the tensors, the others an empty dict.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        state = {}
        for name, value in {**model.state_dict(), **self.weights}.items():
            value = full_tensor(value)
            if first:
                to = dtype if value.is_floating_point() else value.dtype
                state[name] = value.to("cpu", to, copy=True).contiguous()
        return state

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Load weights, full or sharded like the EMA. Raises KeyError or RuntimeError for weights of another model."""
        for name, average in self.weights.items():
            local(average).copy_(local(distribute_like(average, weights[name])))


class PowerEma(Ema):
    """Power-function EMA, in which the weights after step s have weight s^gamma (EDM2: 2312.02696, eq. 127).

    d_s = (1 - 1/s)^(gamma + 1). The average covers the same share of a run of any length: most of its weight is within
    the last `sigma_rel` of the steps (see posthoc.py), 0 < sigma_rel < 0.2887.
    """

    def __init__(self, model: nn.Module, sigma_rel: float):
        super().__init__(model, decay=1.0)
        self.gamma = exponent(sigma_rel)

    def decay_at(self, step: int) -> float:
        return (1 - 1 / step) ** (self.gamma + 1)


def build_emas(
    model: nn.Module, decay: float, decays: Sequence[float] = (), sigma_rels: Sequence[float] = ()
) -> dict[str, Ema]:
    """Return all EMAs of a model by name: `ema`, with `decay`, and others such as `decay-0.999`, `sigma_rel-0.05`."""
    others: dict[str, Ema] = {f"decay-{other:g}": Ema(model, other) for other in decays}
    return {"ema": Ema(model, decay), **others, **{f"sigma_rel-{s:g}": PowerEma(model, s) for s in sigma_rels}}
