"""How a GPU's arithmetic differs in memory from that of the CPU, on whose fake tensors a step is rehearsed.

torch built without CUDA has no fake CUDA tensors, so the differences that matter are made here: norms of pictures are
one kernel with their activation and keep its input alone (`imagen.kernels`); other norms compute, and keep,
float32 under autocast (torch.amp's list of operations for CUDA); and attention runs in a kernel that keeps no scores.
A compiled network keeps as much, to 1 % (tests/models/test_graphs.py). Not modelled: workspaces of the libraries.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from imagen.models import layers


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside the block, autocast on "cpu" does as it does on "cuda", and attention as its memory-efficient kernel,
    and norms as ours."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(layers, "attend", attend))
        stack.enter_context(mock.patch.object(layers.kernels, "fused", lambda device: True))
        for module, name in ((F, "group_norm"), (F, "layer_norm"), (torch, "addcmul")):
            wide = partial(_in_float32, getattr(module, name), always=module is F)
            stack.enter_context(mock.patch.object(module, name, wide))
        yield


def _in_float32(function: Callable[..., Tensor], *args: Any, always: bool, **kwargs: Any) -> Tensor:
    """Under autocast, in float32; not always: if any argument is, as torch.amp has it for functions of several."""
    if torch.is_autocast_enabled("cpu") and (always or any(_is(arg, torch.float32) for arg in args)):
        args, kwargs = tree_map(_float32, (args, kwargs))
    return function(*args, **kwargs)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`layers.attend` in the kernel that takes any mask; the backward pass needs one number a query and head."""
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        length = k.shape[-2]
        padded = F.pad(bias, (0, -length % 16))[..., :length]  # the kernel reads it aligned
        bias = padded.expand(*q.shape[:-1], length)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]


def _is(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _float32(value: Any) -> Any:
    return value.float() if _is(value, torch.bfloat16) else value
