"""Kernels of our own, each beside the same computation in torch's operations.

philox.py      standard normal numbers of a counter-based generator
norm.py      group norm, scale and shift and activation as one operation
triton.py      both for GPUs, in Triton; imported where they first run, since only CUDA builds of torch bring Triton
"""

import importlib.util

import torch

from imagen.kernels.norm import group_norm

__all__ = ["TRITON", "fused", "group_norm"]

TRITON = importlib.util.find_spec("triton") is not None


def fused(device: torch.device) -> bool:
    """Whether kernels of our own serve on `device`; elsewhere torch's operations do."""
    return device.type == "cuda" and TRITON
