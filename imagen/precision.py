"""Choose the number format of each part of the computation: the one in which the processor multiplies fastest."""

import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch

from imagen.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Values of ONEDNN_MAX_CPU_ISA below the first with bfloat16 products.
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Arithmetic:
    """The number formats used on a device. It supports all of them in hardware."""

    network: torch.dtype | None  # autocast of U-Nets and recognisers, in training and sampling; None: float32
    encoder: torch.dtype  # weights of a frozen text encoder
    matrices: torch.dtype  # products inside an optimizer


def arithmetic(device: torch.device | str) -> Arithmetic:
    """Return the formats for `device`.

    bfloat16 where the device supports it in hardware: GPUs from Ampere on, CPUs with AMX or AVX512-BF16, and other
    CPUs if a measurement of a few milliseconds finds it faster. Older NVIDIA GPUs (Volta, Turing) use float16 only for
    the network: T5's activations and an optimizer's small values exceed its range. Apple's GPUs use float32, the only
    format tested there. On a CPU the text encoder uses float32, so that embeddings are the same on all CPUs.
    """
    device = torch.device(device)
    if device.type == "cpu":
        fast = torch.bfloat16 if cpu_multiplies_bfloat16() else None
        return Arithmetic(network=fast, encoder=torch.float32, matrices=fast or torch.float32)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Arithmetic(network=torch.bfloat16, encoder=torch.bfloat16, matrices=torch.bfloat16)
        return Arithmetic(network=torch.float16, encoder=torch.float32, matrices=torch.float32)
    return Arithmetic(network=None, encoder=torch.float32, matrices=torch.float32)


def autocast_dtype(device: torch.device | str, precision: Precision = "auto") -> torch.dtype | None:
    """Return the autocast format for `device`, or None for float32. "auto": the format of `arithmetic`.

    Raises UserError for an unknown name.
    """
    if precision not in get_args(Precision):
        raise UserError(f"unknown precision {precision!r}: choose {', '.join(get_args(Precision))}")
    return arithmetic(device).network if precision == "auto" else _DTYPES[precision]


def precision_name(dtype: torch.dtype | None) -> Precision:
    """Return the name of an autocast format: "fp32", "bf16" or "fp16"."""
    return next(name for name, known in _DTYPES.items() if known == dtype)


def autocast(device: torch.device | str, dtype: torch.dtype | None) -> AbstractContextManager:
    """Return `torch.autocast` to `dtype` on `device`; for None a context without effect."""
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype=dtype)


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16 products that torch and oneDNN may use.

    Environment variables can restrict both libraries (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA); then they emulate
    bfloat16.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return bfloat16_is_faster()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    if limit.upper() in _ISA_WITHOUT_BF16 or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private; a missing one counts as False
    return any(getattr(torch.cpu, name, bool)() for name in probes)


def bfloat16_is_faster(side: int = 384, rounds: int = 5) -> bool:
    """Return whether a matrix product takes less than 0.8 of the time in bfloat16. Runs for milliseconds.

    Emulation is several times slower, so the result is robust against other load on the machine.
    """

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(side, side, dtype=dtype)
        best = float("inf")
        for _ in range(rounds):
            began = time.perf_counter()
            x @ x
            best = min(best, time.perf_counter() - began)
        return best

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
