"""Weights of 8 bits for a frozen text encoder: a quarter of float32's memory, at some precision of the embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer whose weights are W = scale q: q in -127..127, one scale per output
    (absmax, 2208.07339, sec. 2.1).

    Only the weights are rounded: they are multiplied out at every call, in the format of the input.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))  # by this name T5 asks for its format
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def quantize_int8(model: nn.Module) -> None:
    """Replace every linear layer of `model` by an Int8Linear, one after the other."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
