"""Quantize a frozen text encoder's weights to 8 bits: a quarter of float32's memory, with less precise embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """Apply a linear layer with weights W = scale q, q in -127..127, one scale per output (absmax, 2208.07339, 2.1).

    Only the weights are quantized. Every call dequantizes them to the dtype of the input.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))  # T5 reads the dtype of `weight`
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def quantize_int8(model: nn.Module) -> None:
    """Replace every linear layer of `model` by an Int8Linear, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
