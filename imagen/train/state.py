"""A run's tensors by name, as a checkpoint stores them, full or sharded."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from imagen.lora.modules import has_adapters, is_factor
from imagen.train.ema import Ema
from imagen.train.layout import named_weights
from imagen.train.optim import Optimizers


def run_tensors(unet: nn.Module, emas: Mapping[str, Ema], optimizer: Optimizers) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the model, each EMA and the optimizer, by kind and name.

    The optimizer's tensors are named NAME.KEY, such as NAME.exp_avg. They exist after `create_optimizer_state` or the
    optimizer's first step. Hyperparameters are not included, because the config defines them. Of a model with adapters
    only these are stored: its frozen weights are in RUN/base.
    """
    model = {**unet.state_dict(), **{name: weight.detach() for name, weight in named_weights(unet)}}
    if has_adapters(unet):
        model = {name: weight for name, weight in model.items() if is_factor(name)}
    names: dict[Tensor, str] = {parameter: name for name, parameter in named_weights(unet)}
    return {
        "model": model,
        **{name: dict(ema.weights) for name, ema in emas.items()},
        "optimizer": {
            f"{names[parameter]}.{key}": value
            for part in optimizer.optimizers
            for parameter, state in part.state.items()
            for key, value in state.items()
        },
    }


@torch.no_grad()
def create_optimizer_state(unet: nn.Module, optimizer: Optimizers) -> None:
    """Create the optimizer's state, into which a checkpoint is loaded, by a step with zero gradients and rate 0."""
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.set_learning_rate(0.0)
    optimizer.step()
    optimizer.zero_grad()
