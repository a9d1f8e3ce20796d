"""Fit an adapter to a U-Net, and apply it while images are sampled.

Adapters are added to the weights for as long as they are needed. So one network serves requests with different
adapters, several of them go together, each with its own weight, and sampling costs no more than without.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from imagen.errors import UserError, quoted
from imagen.lora.files import Adapter, Factors
from imagen.models.diffusers_names import theirs


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one bool
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
    """Add `weight * scale * B A` to the weights of each adapted layer of `unet`, within the context.

    The weights change in place, so compiled networks need no new graph, and are restored to the bit at the end.
    """
    changes: dict[str, Tensor] = {}
    for fitted, weight in adapters:
        for name, factors in fitted.modules.items():
            low, high = factors.A.flatten(1), factors.B.flatten(1)
            change = weight * factors.scale * (high @ low)
            changes[name] = changes[name] + change if name in changes else change
    originals = []
    try:
        for name, change in changes.items():
            held = unet.get_submodule(name).weight
            assert isinstance(held, Tensor)
            originals.append((held.data, held.detach().clone()))
            held.data.copy_(held.detach().float() + change.view(held.shape).to(held.device))
        yield
    finally:
        for data, original in originals:
            data.copy_(original)
