"""Manage a stage's U-Net on a device: placement, number format and compilation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from imagen.models.compiling import compile_module
from imagen.models.unet import LOW_PRECISION, UNet, cast_copy
from imagen.stage.compiled import CompiledSteps


class Network:
    """A U-Net on the device of a sampler. options: of torch.compile; None: not compiled.

    For low precision on GPUs all weights are stored in low precision, because autocast would cast every weight in every
    step and compute norms in float32. If the weights are float32, the U-Net is copied, and the copy is reused until the
    weights change.
    """

    def __init__(self, unet: nn.Module, options: Mapping[str, Any] | None = None):
        self.unet, self.options = unet, options
        self._copy: UNet | None = None
        self._copied_from: Any = None
        self._compiled: nn.Module | None = None
        self.steps = None if options is None else CompiledSteps(options)

    def to_device(
        self, device: torch.device, dtype: torch.dtype | None, *, whole_steps: bool = False
    ) -> tuple[nn.Module, torch.dtype | None]:
        """Return (the U-Net on `device`, the autocast dtype to run it under) for arithmetic in `dtype`; None: float32.

        whole_steps: do not compile the U-Net by itself, because it is part of compiled `steps`.
        """
        unet, around = self.unet, dtype
        if device.type != "cpu" and dtype in LOW_PRECISION and isinstance(unet, UNet):
            unet, around = self.low_precision(unet, device, dtype), None
        unet = unet.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.options is not None and not whole_steps and self._compiled is not unet:
            compile_module(unet, **self.options)
            self._compiled = unet
        return unet, around

    def offload(self) -> None:
        """Move the weights to the CPU and delete the copy."""
        self._copy = self._copied_from = self._compiled = None
        self.unet.to("cpu")

    def low_precision(self, unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
        """Return `unet` with all weights in `dtype`: a copy on `device`, or itself if it was loaded in `dtype`."""
        parameters = list(unet.parameters())
        if any(parameter.dtype == dtype for parameter in parameters):  # `build_unet` loads vectors in float32
            return unet.to(dtype)
        copied_from = (dtype, [(parameter.data_ptr(), parameter._version) for parameter in parameters])
        if self._copy is None or self._copied_from != copied_from:
            self._copy, self._copied_from = cast_copy(unet, dtype, device).requires_grad_(False), copied_from
        return self._copy
