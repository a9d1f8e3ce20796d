"""Custom kernels, each with a reference implementation in torch or NumPy.

norm.py           group norm, modulation and activation as one operation
philox.py         standard normal numbers from a counter-based generator
triton_norm.py    norm.py on GPUs; imported when it first runs, because only CUDA builds of torch include Triton
triton_philox.py  philox.py on GPUs, likewise
"""

import importlib.util

import torch

from imagen.kernels.norm import group_norm

__all__ = ["HAS_TRITON", "group_norm", "uses_triton"]

HAS_TRITON = importlib.util.find_spec("triton") is not None


def uses_triton(device: torch.device) -> bool:
    """Return whether the Triton kernels run on `device`."""
    return device.type == "cuda" and HAS_TRITON
