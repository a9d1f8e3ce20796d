"""Which device computes where nobody chose one."""

import torch


def default_device() -> str:
    """Return "cuda" where torch sees an NVIDIA (or ROCm) GPU, else "mps" on Apple's GPUs, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
