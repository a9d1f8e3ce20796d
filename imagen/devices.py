"""Which device computes where nobody chose one, how it is set up, and how it is given what it computes with."""

import os
from collections.abc import Callable

import torch
from torch import Tensor


def default_device() -> str:
    """Return "cuda" where torch sees an NVIDIA (or ROCm) GPU, else "mps" on Apple's GPUs, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def set_up(device: torch.device | str) -> None:
    """Choose an NVIDIA GPU for the calling thread, and what serves networks of fixed shapes. Threads begin with GPU 0.

    Convolutions are timed once for each shape (cudnn.benchmark). Segments of memory that can grow hold tensors of
    changing sizes, a validation grid's between training's, without gaps; PYTORCH_ALLOC_CONF overrides.
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
    """`tensor` on `device`, without waiting for it: the copy is queued, from pinned memory, as only such copies are."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return pin(tensor, device).to(device, non_blocking=True)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` in memory that `device` reads and writes by itself; as it is where there is no such memory."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def fetch(tensor: Tensor) -> tuple[Tensor, Callable[[], object]]:
    """(a copy on the CPU, what waits until it is there). On an NVIDIA GPU the copy is queued, elsewhere it is made."""
    if tensor.device.type != "cuda":
        return (tensor if tensor.is_meta else tensor.cpu()), _nothing
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event.synchronize


def _nothing() -> None:
    """What there is to wait for where a copy is made at once."""
