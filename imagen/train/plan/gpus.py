"""GPUs as data, and what is assumed of the machines around them."""

import os
from dataclasses import dataclass

from imagen.errors import UserError
from imagen.train.plan.calibration import CALIBRATION

GIB = 2**30

# Of a GPU's memory: its context, NCCL's buffers, the libraries' workspaces, and what lies between blocks.
RESERVED = CALIBRATION["reserved"].value
GPUS_A_MACHINE = 8  # that are joined by links; between machines, each has its network's bandwidth. Assumed.


@dataclass(frozen=True, kw_only=True)
class Gpu:
    memory: float  # GiB, as the driver reports it
    tflops: float | None  # dense bf16 matrix products, 10^12 operations a second; None: no figure, no time is estimated
    link: float  # to the other GPUs of the machine, 10^9 bytes a second each way
    network: float  # to other machines, a GPU's share of it, likewise; assumed: 400 or 200 Gbit/s each, or a plain card

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        return int(self.memory * (1 - RESERVED) * GIB)


# Peaks without sparsity and links from NVIDIA's data sheets: A100 (2021), H100 SXM, H200 SXM, L40S, DGX B200, Ada GPU
# architecture (RTX 4090, with sums in float32). Their figures with sparsity, and of links both ways, are halved. Memory
# as nvidia-smi shows it.
GPUS = {
    "a100-40gb": Gpu(memory=40.0, tflops=312, link=300, network=25),
    "a100-80gb": Gpu(memory=80.0, tflops=312, link=300, network=25),
    "h100-80gb": Gpu(memory=79.6, tflops=989, link=450, network=50),
    "h200": Gpu(memory=140.4, tflops=989, link=450, network=50),
    "b200": Gpu(memory=179.1, tflops=2250, link=900, network=50),
    "l40s": Gpu(memory=45.0, tflops=362, link=32, network=12.5),
    "rtx-4090": Gpu(memory=24.0, tflops=165, link=32, network=1.25),
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, or `cpu`: this machine's memory. UserError, with all names, if there is none."""
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return Gpu(memory=memory, tflops=None, link=10, network=1.25)
    if name not in GPUS:
        raise UserError(f"unknown GPU {name!r}; choose {', '.join(GPUS)}, cpu")
    return GPUS[name]
