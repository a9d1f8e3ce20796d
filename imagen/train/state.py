"""A run's tensors by name: what a checkpoint holds, however they are spread over ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from imagen.train.ema import Ema
from imagen.train.layout import named_weights
from imagen.train.optim import Optimizers


def run_tensors(unet: nn.Module, averages: Mapping[str, Ema], optimizer: Optimizers) -> dict[str, dict[str, Tensor]]:
    """`model` and each average by parameter's name, `optimizer` by NAME.KEY (exp_avg, say): the tensors themselves.

    Hyperparameters are not among them: they are the config's. All of the optimizer's are there after `materialise`,
    or after its first step.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in named_weights(unet)}
    return {
        "model": {**unet.state_dict(), **{name: weight.detach() for name, weight in named_weights(unet)}},
        **{name: dict(average.weights) for name, average in averages.items()},
        "optimizer": {
            f"{names[parameter]}.{key}": value
            for part in optimizer.optimizers
            for parameter, state in part.state.items()
            for key, value in state.items()
        },
    }


@torch.no_grad()
def materialise(unet: nn.Module, optimizer: Optimizers) -> None:
    """Give an optimizer its state before the first step, to load into: one step with gradients and rate of 0."""
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.set_learning_rate(0.0)
    optimizer.step()
    optimizer.zero_grad()
