"""Build a stage's U-Net from its tensors, with checks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.unet import UNet
from imagen.precision import precision_name


def build_unet(
    config: UNetConfig, tensors: Mapping[str, Tensor], where: Path, dtype: torch.dtype | None = None
) -> UNet:
    """Return the U-Net with these weights, in evaluation mode and without gradients.

    where: the file of the weights, for error messages. dtype: of the weights of convolutions and linear layers, which
    autocast would otherwise cast in every network evaluation; None: float32. All other weights are float32.
    Raises UserError, naming the tensor, unless names and shapes match the U-Net exactly.
    """
    with torch.device("meta"):  # without allocating weights that are replaced immediately
        unet = UNet(config)
    expected = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    for key, shape in expected.items():
        if key not in tensors:
            raise UserError(f"{where}: tensor {key!r} is missing; the weights do not fit the U-Net in cascade.json")
        if tuple(tensors[key].shape) != shape:
            raise UserError(f"{where}: tensor {key!r} has shape {tuple(tensors[key].shape)}, the U-Net needs {shape}")
        if not tensors[key].is_floating_point():
            raise UserError(f"{where}: tensor {key!r} has dtype {tensors[key].dtype}; weights must be floating-point")
    for key in tensors:
        if key not in expected:
            raise UserError(f"{where}: tensor {key!r} is not in the U-Net of cascade.json")
    held = {key: value.to(dtype if dtype and value.ndim > 1 else torch.float32) for key, value in tensors.items()}
    unet.load_state_dict(held, assign=True)
    return unet.eval().requires_grad_(False)


def check_float32(unet: nn.Module, what: str) -> None:
    """Raise UserError, beginning with `what`, if the weights were rounded when they were loaded."""
    if any(parameter.dtype != torch.float32 for parameter in unet.parameters()):
        held = {parameter.dtype for parameter in unet.parameters()} - {torch.float32}
        raise UserError(
            f"{what}: its weights were loaded in {precision_name(held.pop())}; load the cascade with precision fp32"
        )
