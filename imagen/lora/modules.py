"""Add trainable low-rank adapters to a U-Net from outside, and merge them into its weights.

An adapted layer keeps its weight and bias under their names and gets two parameters beside them, `lora_A` and `lora_B`.
So weights, checkpoints and other adapters of the network fit before and after.
"""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.lora.config import LoraConfig

FACTORS = ("lora_A", "lora_B")


class LoraLinear(nn.Linear):
    """A linear layer with an adapter: W x + b + scale B (A x)."""

    lora_A: nn.Parameter  # [r, in]
    lora_B: nn.Parameter  # [out, r]
    lora_scale: float

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight, self.bias) + self.lora_scale * change


class LoraConv2d(nn.Conv2d):
    """A convolution with an adapter: A is a convolution of the same kernel to r channels, B one of 1 x 1."""

    lora_A: nn.Parameter  # [r, in, kh, kw]
    lora_B: nn.Parameter  # [out, r, 1, 1]
    lora_scale: float

    def forward(self, x_BCHW: Tensor) -> Tensor:
        change_BCHW = F.conv2d(self._conv_forward(x_BCHW, self.lora_A, None), self.lora_B)
        return self._conv_forward(x_BCHW, self.weight, self.bias) + self.lora_scale * change_BCHW


def add_adapters(unet: nn.Module, config: LoraConfig) -> list[str]:
    """Freeze all weights and add adapters to the layers that `config` names; return the layers' names.

    A is drawn from torch's generator, B is zero: the network computes the same as before.
    Raises UserError, naming the pattern, if one matches no linear layer or convolution.
    """
    unet.requires_grad_(False)
    layers = {name: layer for name, layer in unet.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    names: dict[str, None] = {}
    for pattern in config.patterns:
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found and pattern in config.targets:
            raise UserError(
                f"lora.targets: no linear layer or convolution of the U-Net matches {pattern!r}; names are like "
                f"{', '.join(list(layers)[-3:])}"
            )
        names |= dict.fromkeys(found)
    if not names:
        raise UserError("lora.convolutions is true, but the U-Net has no residual blocks: set lora.targets")
    adapted = [name for name in layers if name in names]
    for name in adapted:
        _add(layers[name], config)
    return adapted


def _add(layer: nn.Module, config: LoraConfig) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight, rank = layer.weight, config.rank
    ones = [1] * (weight.ndim - 2)
    A = torch.empty(rank, *weight.shape[1:], device=weight.device)
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as peft does
    layer.__class__ = LoraLinear if isinstance(layer, nn.Linear) else LoraConv2d
    assert isinstance(layer, LoraLinear | LoraConv2d)
    layer.lora_A = nn.Parameter(A)
    layer.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, *ones, device=weight.device))
    layer.lora_scale = config.scale


def has_adapters(unet: nn.Module) -> bool:
    """Return whether `add_adapters` was applied."""
    return any(isinstance(module, LoraLinear | LoraConv2d) for module in unet.modules())


def is_factor(name: str) -> bool:
    """Return whether a parameter's name is that of a factor."""
    return name.rpartition(".")[2] in FACTORS


def factors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (module, A, B) of each adapted layer in a state dict."""
    for name, A in state.items():
        if name.endswith(".lora_A"):
            module = name.removesuffix(".lora_A")
            yield module, A, state[f"{module}.lora_B"]


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return a state dict without factors: W + scale B A in place of each adapted weight. float32 arithmetic."""
    result = {name: value for name, value in state.items() if not is_factor(name)}
    for module, A, B in factors(state):
        weight = result[f"{module}.weight"]
        change = (B.float().flatten(1) @ A.float().flatten(1)).view(weight.shape)
        result[f"{module}.weight"] = (weight.float() + scale * change).to(weight.dtype)
    return result
