"""Fit an adapter to a U-Net, and apply it while images are sampled.

An adapter is added to the weights only while it is in use. One network therefore serves requests with different
adapters, several adapters can be combined, each with its own weight, and a step costs the same as without adapters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from imagen.errors import UserError, quoted
from imagen.lora.files import Adapter, Factors
from imagen.models.diffusers_names import theirs


@dataclass(frozen=True, eq=False)  # comparing tensors does not return one bool
class Fitted:
    """An adapter that fits a U-Net."""

    adapter: Adapter
    modules: Mapping[str, Factors]  # by the names of the U-Net's modules


def fit(adapter: Adapter, unet: nn.Module) -> Fitted:
    """Fit `adapter` to `unet`. Raises UserError, naming the first layer that differs, if it is for another network."""
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    known: dict[str, str] = {}
    for ours in layers:
        for name in (ours, theirs(f"{ours}.weight").removesuffix(".weight")):
            known[name] = known[name.replace(".", "_")] = ours
    modules = {}
    for name, factors in adapter.modules.items():
        if name not in known:
            raise UserError(
                f"LoRA {adapter.name}: the U-Net has no layer {quoted(name)}; the file was made for another model"
            )
        ours = known[name]
        found = (factors.B.shape[0], *factors.A.shape[1:])
        if tuple(layers[ours].weight.shape) != found:
            raise UserError(
                f"LoRA {adapter.name}: layer {quoted(name)} is {list(layers[ours].weight.shape)} in the U-Net and "
                f"{list(found)} in the adapter; the file was made for another model"
            )
        modules[ours] = factors
    return Fitted(adapter, modules)


@contextmanager
def applied(unet: nn.Module, adapters: Sequence[tuple[Fitted, float]]) -> Iterator[None]:
    """Add `weight * scale * B A` to the weights of each adapted layer of `unet` within the block.

    The weights change in place, so compiled networks need no new graph. Copies restore them exactly at the end.
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
