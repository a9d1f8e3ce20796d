"""Shared parts of the benchmarks: machine description, FLOP counts, timers."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imagen import __version__

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
BACKWARD = 2  # cost of a backward pass in forward passes: gradients of the input and of the weights


class Clock:
    """Wall time and CPU time (all threads of the process) of repeated work, in seconds, one entry per repeat.

    On a shared machine CPU time is more reliable than wall time.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the work inside the block as one entry."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def forget(self) -> None:
        """Drop all entries, after a warm-up."""
        self.wall.clear()
        self.cpu.clear()

    @property
    def seconds(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.cpu)

    def to_json(self) -> dict[str, Any]:
        return {"wall_s": self.wall, "cpu_s": self.cpu, "median_wall_s": self.seconds, "median_cpu_s": self.cpu_seconds}


def gflop(forward: Callable[[], object]) -> float:
    """Count the operations of convolutions and matrix products in `forward`, in GFLOP (a multiply-add is two).

    `forward` should run on the meta device, where attention is decomposed into matrix products. The counter does not
    count the fused attention kernel of a CPU.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 1e9


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def fill_zeros(model: nn.Module) -> None:
    """Set all parameters that are zero to small random values, so that no measured product is trivial."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def machine() -> dict[str, Any]:
    """Return the properties of the machine and the software that affect a measurement."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "imagen": __version__,
    }


def describe_machine(facts: dict[str, Any]) -> str:
    """Format the result of `machine` as one line."""
    sets = " ".join(facts["instruction_sets"]) or facts["torch_cpu_capability"]
    load = "" if facts["load_before"] is None else f", load before {facts['load_before']:.1f}"
    return f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {sets}; torch {facts['torch']}{load}"


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty if the file does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
