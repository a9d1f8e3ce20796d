"""Choose a default device, set it up, and copy tensors to and from it without blocking."""

import os
from collections.abc import Callable

import torch
from torch import Tensor


def default_device() -> str:
    """Return "cuda" if torch finds an NVIDIA (or ROCm) GPU, else "mps" on Apple's GPUs, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def set_up(device: torch.device | str) -> None:
    """Set up an NVIDIA GPU for the calling thread, with options for networks of fixed shapes. Threads begin with GPU 0.

    cuDNN times convolutions once per shape (cudnn.benchmark). Expandable segments avoid fragmentation when tensor sizes
    change, for example between training and sample grids; PYTORCH_ALLOC_CONF overrides this.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return
    if not torch.cuda.is_initialized() and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device` without blocking, through pinned memory, which asynchronous copies require."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return pin(tensor, device).to(device, non_blocking=True)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor in pinned memory if `device` is a CUDA device, else unchanged."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def fetch(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """Return a copy on the CPU and a function that waits for it. From CUDA devices the copy is asynchronous."""
    if tensor.device.type != "cuda":
        return (tensor if tensor.is_meta else tensor.cpu()), _nothing
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event.synchronize


def _nothing() -> None:
    """Return immediately: a synchronous copy is complete."""
