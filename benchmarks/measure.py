"""What the benchmarks share: facts about the machine, counted operations, two clocks."""

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
BACKWARD = 2  # a backward costs two forwards: the gradient of the input and that of the weights


class Clock:
    """Wall time and the process's CPU time (all threads) of repeated work, in seconds, one entry a repeat.

    On a machine that others use, too, CPU time says more than wall time does.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def forget(self) -> None:
        """Drop what has been timed so far: it was warm-up."""
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
    """Convolutions and matrix products that `forward` asks for, in 1e9 operations (a multiply-add is two).

    Count on the meta device: there attention is taken apart into the matrix products that
    the counter knows, which it does not know inside a CPU's fused kernel.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 1e9


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def fill_zeros(model: nn.Module) -> None:
    """Give small random values to all weights that start at zero, so that no product in the measured work is idle."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code."""
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
    """The facts as one line."""
    sets = " ".join(facts["instruction_sets"]) or facts["torch_cpu_capability"]
    load = "" if facts["load_before"] is None else f", load before {facts['load_before']:.1f}"
    return f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {sets}; torch {facts['torch']}{load}"


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
