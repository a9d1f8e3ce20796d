"""Fit an adapter to a U-Net, and apply it while pictures are sampled.

The network's weights are not changed: what the adapter adds is computed beside each layer. So several adapters go
together, each with a weight of its own, one network serves requests with different ones, and none leaves a trace.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from imagen.errors import UserError, quoted
from imagen.lora.files import Adapter, Factors
from imagen.models.diffusers_names import theirs


@dataclass(frozen=True)
class Fitted:
    """An adapter as one U-Net takes it."""

    adapter: Adapter
    modules: Mapping[str, Factors]  # by our names of modules


def fit(adapter: Adapter, unet: nn.Module) -> Fitted:
    """`adapter` for `unet`. Raises UserError, naming the first module, if it was made for another network."""
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    known: dict[str, str] = {}
    for ours in layers:
        for name in (ours, theirs(f"{ours}.weight").removesuffix(".weight")):
            known[name] = known[name.replace(".", "_")] = ours
    modules = {}
    for name, factors in adapter.modules.items():
        if name not in known:
            raise UserError(f"LoRA {adapter.name}: the U-Net has no layer {quoted(name)}: made for another model")
        ours = known[name]
        found = (factors.B.shape[0], *factors.A.shape[1:])
        if tuple(layers[ours].weight.shape) != found:
            raise UserError(
                f"LoRA {adapter.name}: layer {quoted(name)} is {list(layers[ours].weight.shape)} in the U-Net and "
                f"{list(found)} in the adapter; it was made for another model"
            )
        modules[ours] = factors
    return Fitted(adapter, modules)


@contextmanager
def applied(unet: nn.Module, adapters: Sequence[tuple[Fitted, float]]) -> Iterator[None]:
    """Add `weight * scale * B A x` to the answer of each adapted layer of `unet`, within the context."""
    terms: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for fitted, weight in adapters:
        for name, factors in fitted.modules.items():
            held = unet.get_submodule(name).weight
            assert isinstance(held, Tensor)
            pair = factors.A.to(held), (weight * factors.scale * factors.B).to(held)
            terms.setdefault(name, []).append(pair)
    handles = [unet.get_submodule(name).register_forward_hook(_beside(pairs)) for name, pairs in terms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside(pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        (x,) = inputs
        for A, B in pairs:
            if isinstance(layer, nn.Conv2d):
                low = F.conv2d(x, A, None, layer.stride, layer.padding, layer.dilation)
                answer = answer + F.conv2d(low, B)
            else:
                answer = answer + F.linear(F.linear(x, A), B)
        return answer

    return hook
