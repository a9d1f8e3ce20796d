"""Convolution weights that lie channels-last although they are sharded.

`fully_shard` takes contiguous parameters alone and gathers them contiguous. So a sharded convolution owns its weight
as [O, h, w, I] and computes with the view [O, I, h, w] of it. EMAs, optimizers and checkpoints see that view of this
rank's rows, under the weight's name: they are the same however a network is sharded.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class OwnsNHWC(nn.Conv2d):
    """A convolution whose `weight` is [O, h, w, I]."""

    weight: nn.Parameter
    view: nn.Parameter  # [O, I, h, w], of the sharded weight's memory; not one of the module's parameters

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._conv_forward(x_BCHW, self.weight.permute(0, 3, 1, 2), self.bias)


@torch.no_grad()
def own_nhwc(network: nn.Module) -> None:
    """Permute the weights of all convolutions, before `fully_shard`; those of 1 x 1 are channels-last in any case."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.kernel_size != (1, 1):
            module.weight = nn.Parameter(module.weight.permute(0, 2, 3, 1).contiguous(), module.weight.requires_grad)
            module.__class__ = OwnsNHWC


def make_views(network: nn.Module) -> None:
    """Give each permuted weight its view, after `fully_shard`, whose sharded parameters keep their memory."""
    for module in _permuted(network):
        # Not by nn.Module's own way, which would register it.
        vars(module)["view"] = nn.Parameter(_as_oihw(module.weight), module.weight.requires_grad)


def named_weights(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield `network.named_parameters()`, every convolution's weight as [O, I, h, w]."""
    views = {module.weight: module.view for module in _permuted(network)}
    yield from ((name, views.get(parameter, parameter)) for name, parameter in network.named_parameters())


def permuted_weights(network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return (view, sharded parameter) of each permuted weight: gradients arrive at the latter."""
    return [(module.view, module.weight) for module in _permuted(network)]


def assign_gradients(pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Let each view have its parameter's gradient, in the same memory."""
    for view, parameter in pairs:
        view.grad = None if parameter.grad is None else _as_oihw(parameter.grad)


def _permuted(network: nn.Module) -> Iterator[OwnsNHWC]:
    return (module for module in network.modules() if isinstance(module, OwnsNHWC))


@torch.no_grad()
def _as_oihw(tensor_OhwI: Tensor) -> Tensor:
    """View it as [O, I, h, w]; a DTensor by this rank's rows, where nothing has to find out how it is placed."""
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
