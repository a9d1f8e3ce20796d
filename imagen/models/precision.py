"""Which number format the network computes in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def autocast_dtype(device: torch.device | str, precision: Precision = "auto") -> torch.dtype | None:
    """The autocast format for `device`, or None for plain float32.

    "auto" is bfloat16 where the processor multiplies matrices in it: a GPU with native
    bfloat16, a CPU with AMX or AVX512-BF16. Elsewhere bfloat16 is emulated, and slower
    than float32.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    return torch.bfloat16 if _has_bfloat16(torch.device(device)) else None


def autocast(device: torch.device | str, dtype: torch.dtype | None) -> AbstractContextManager:
    """`torch.autocast` to `dtype` on `device`; nothing at all for None."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private names, and absent in some builds (ARM, macOS): a missing one means no.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in probes)
