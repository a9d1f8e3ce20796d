"""A stage's network as a device computes it: where it is, in which format, compiled or not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from imagen.models.compiling import compile_module
from imagen.models.unet import HALVES, UNet, cast_copy


class Network:
    """Lends a U-Net to the steps of a sampler. options: of torch.compile; None: not compiled.

    On GPUs a U-Net in half precision is so throughout: autocast would cast every weight at every step, and norms would
    be in float32. If its own weights are float32, a copy is made, which stays until they change.
    """

    def __init__(self, unet: nn.Module, options: Mapping[str, Any] | None = None):
        self.unet, self.options = unet, options
        self._half: UNet | None = None
        self._made_of: Any = None
        self._compiled: nn.Module | None = None

    def on(self, device: torch.device, dtype: torch.dtype | None) -> tuple[nn.Module, torch.dtype | None]:
        """(the network on `device`, the format of autocast around it) for arithmetic in `dtype`; None: float32."""
        unet, around = self.unet, dtype
        if device.type != "cpu" and dtype in HALVES and isinstance(unet, UNet):
            unet, around = self._halved(unet, device, dtype), None
        unet = unet.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.options is not None and self._compiled is not unet:
            compile_module(unet, **self.options)
            self._compiled = unet
        return unet, around

    def leave(self) -> None:
        """Give the device's memory back."""
        self._half = self._made_of = self._compiled = None
        self.unet.to("cpu")

    def _halved(self, unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
        parameters = list(unet.parameters())
        if any(parameter.dtype == dtype for parameter in parameters):  # rounded already, but for vectors
            return unet.to(dtype)
        made_of = (dtype, [(parameter.data_ptr(), parameter._version) for parameter in parameters])
        if self._half is None or self._made_of != made_of:
            self._half, self._made_of = cast_copy(unet, dtype, device).requires_grad_(False), made_of
        return self._half
