"""A table of GPUs: specified peak throughput for the MFU; memory and bandwidth for `imagen plan`."""

import os
import re
from dataclasses import dataclass

from imagen.errors import UserError

GIB = 2**30
GPUS_PER_MACHINE = 8  # assumed: connected by links; each GPU has its own network bandwidth to other machines


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Specification of a GPU. `imagen plan` needs its memory."""

    chip: str = ""  # part of the device's name in torch
    tflops: float | None  # stated 10^12 dense operations per second in bf16; None: unknown, no time is estimated
    tf32_tflops: float | None = None  # the same in float32, for which torch uses TF32 in convolutions
    memory: float = 0.0  # GiB, as the driver reports it
    link: float = 0.0  # to other GPUs of the machine, 10^9 bytes per second in each direction
    network: float = 0.0  # to other machines, likewise; assumed: 400, 200, 100 or 10 Gbit/s per GPU


# Peaks without sparsity and links from NVIDIA's data sheets: A100 (2021), H100 SXM, H200 SXM, L40S, DGX B200, Ada GPU
# architecture (RTX 4090, with float32 accumulation) and others. Figures with sparsity, and of links in both directions,
# are halved. Memory as nvidia-smi shows it.
GPUS = {
    "a100-40gb": Gpu(chip="A100", tflops=312, tf32_tflops=156, memory=40.0, link=300, network=25),
    "a100-80gb": Gpu(chip="A100", tflops=312, tf32_tflops=156, memory=80.0, link=300, network=25),
    "h100-80gb": Gpu(chip="H100", tflops=989, tf32_tflops=494.5, memory=79.6, link=450, network=50),
    "h200": Gpu(chip="H200", tflops=989, tf32_tflops=494.5, memory=140.4, link=450, network=50),
    "b200": Gpu(chip="B200", tflops=2250, tf32_tflops=1125, memory=179.1, link=900, network=50),
    "l40s": Gpu(chip="L40S", tflops=362, tf32_tflops=183, memory=45.0, link=32, network=12.5),
    "rtx-4090": Gpu(chip="RTX 4090", tflops=165.2, tf32_tflops=82.6, memory=24.0, link=32, network=1.25),
    "gb200": Gpu(chip="GB200", tflops=2500, tf32_tflops=1250),
    "gh200": Gpu(chip="GH200", tflops=989, tf32_tflops=494.5),
    "h200-nvl": Gpu(chip="H200 NVL", tflops=835.5, tf32_tflops=417.5),
    "h100-nvl": Gpu(chip="H100 NVL", tflops=835.5, tf32_tflops=417.5),
    "h100-pcie": Gpu(chip="H100 PCIe", tflops=756, tf32_tflops=378),
    "h800-pcie": Gpu(chip="H800 PCIe", tflops=756, tf32_tflops=378),
    "h800": Gpu(chip="H800", tflops=989, tf32_tflops=494.5),
    "h20": Gpu(chip="H20", tflops=148, tf32_tflops=74),
    "a800": Gpu(chip="A800", tflops=312, tf32_tflops=156),
    "a30": Gpu(chip="A30", tflops=165, tf32_tflops=82),
    "a40": Gpu(chip="A40", tflops=149.7, tf32_tflops=74.8),
    "a10": Gpu(chip="A10", tflops=125, tf32_tflops=62.5),
    "l4": Gpu(chip="L4", tflops=121, tf32_tflops=60),
    "rtx-a6000": Gpu(chip="RTX A6000", tflops=154.8, tf32_tflops=77.4),
    "rtx-3090": Gpu(chip="RTX 3090", tflops=71, tf32_tflops=35.6),
}
PLANNABLE = {name: gpu for name, gpu in GPUS.items() if gpu.memory}


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name, or this machine's memory for "cpu". Raises UserError, with all names, for unknown ones."""
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Gpu(memory=memory, tflops=None, link=10, network=1.25)
    if name not in PLANNABLE:
        raise UserError(f"unknown GPU {name!r}; choose {', '.join(PLANNABLE)}, cpu")
    return PLANNABLE[name]


def identify_gpu(device_name: str) -> Gpu | None:
    """Return the GPU of a device's name in torch; None if it is unknown, or a MIG instance."""
    if " MIG " in f"{device_name} ":
        return None
    longest_first = sorted(GPUS.values(), key=lambda gpu: -len(gpu.chip))  # H100 NVL before H100
    return next((gpu for gpu in longest_first if re.search(rf"\b{gpu.chip}\b", device_name)), None)
