"""Channels-last layout of sharded convolution weights.

`fully_shard` only accepts contiguous parameters, and gathers them as contiguous tensors. A sharded convolution
therefore stores its weight as [O, h, w, I] and computes with a view of it as [O, I, h, w]. EMAs, optimizers and
checkpoints use that view of this rank's rows, under the weight's name, so they do not depend on the sharding.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class NHWCConv2d(nn.Conv2d):
    """A convolution with `weight` stored as [O, h, w, I]."""

    weight: nn.Parameter
    view: nn.Parameter  # the sharded weight's memory as [O, I, h, w]; not registered as a parameter

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._conv_forward(x_BCHW, self.weight.permute(0, 3, 1, 2), self.bias)


@torch.no_grad()
def permute_to_nhwc(network: nn.Module) -> None:
    """Permute the weights of all convolutions; call this before `fully_shard`. 1 x 1 kernels need no permutation."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size != (1, 1):
            module.weight = nn.Parameter(module.weight.permute(0, 2, 3, 1).contiguous(), module.weight.requires_grad)
            module.__class__ = NHWCConv2d


def make_views(network: nn.Module) -> None:
    """Create the view of each permuted weight; call this after `fully_shard`, when its memory no longer changes."""
    for module in _permuted(network):
        # Bypasses nn.Module.__setattr__, which would register the view as a parameter.
        vars(module)["view"] = nn.Parameter(_as_oihw(module.weight), module.weight.requires_grad)


def named_weights(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the named parameters of `network`, with all convolution weights as [O, I, h, w]."""
    views = {module.weight: module.view for module in _permuted(network)}
    yield from ((name, views.get(parameter, parameter)) for name, parameter in network.named_parameters())


def permuted_weights(network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return (view, sharded parameter) of each permuted weight; the backward pass sets the gradient of the latter."""
    return [(module.view, module.weight) for module in _permuted(network)]


def assign_gradients(pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Set the gradient of each view to its parameter's gradient, in the same memory."""
    for view, parameter in pairs:
        view.grad = None if parameter.grad is None else _as_oihw(parameter.grad)


def _permuted(network: nn.Module) -> Iterator[NHWCConv2d]:
    return (module for module in network.modules() if isinstance(module, NHWCConv2d))


@torch.no_grad()
def _as_oihw(tensor_OhwI: Tensor) -> Tensor:
    """View a tensor as [O, I, h, w]. A DTensor's view is built from this rank's rows, without sharding propagation."""
    if not isinstance(tensor_OhwI, DTensor):
        return tensor_OhwI.detach().permute(0, 3, 1, 2)
    O, h, w, I = tensor_OhwI.shape  # noqa: E741
    return DTensor.from_local(
        tensor_OhwI.to_local().permute(0, 3, 1, 2),
        tensor_OhwI.device_mesh,
        tensor_OhwI.placements,
        run_check=False,
        shape=torch.Size((O, I, h, w)),
        stride=(h * w * I, 1, w * I, I),
    )
