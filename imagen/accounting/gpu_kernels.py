"""Reproduce the memory use of GPU kernels on fake CPU tensors.

torch built without CUDA has no fake CUDA tensors, so a dry run uses CPU ones. The differences that affect memory are
patched: a group norm and its activation are one kernel that saves only its input (`imagen.kernels`); other norms
compute in float32 under autocast, as in torch.amp's list for CUDA, and save float32 tensors; attention runs in a kernel
that does not save its scores. A compiled network saves the same amount, within 1 % (tests/models/test_graphs.py).
Library workspaces are not modelled.
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
    """Within the block, patch autocast, attention and norms on "cpu" to use as much memory as on "cuda"."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(layers, "attend", attend))
        stack.enter_context(mock.patch.object(layers.kernels, "uses_triton", lambda device: True))
        for module, name in ((F, "group_norm"), (F, "layer_norm"), (torch, "addcmul")):
            wide = partial(_in_float32, getattr(module, name), always=module is F)
            stack.enter_context(mock.patch.object(module, name, wide))
        yield


def _in_float32(function: Callable[..., Tensor], *args: Any, always: bool, **kwargs: Any) -> Tensor:
    """Call `function` in float32 under autocast.

    always: cast unconditionally; otherwise only if an argument is float32, torch.amp's rule for functions with several
    tensors.
    """
    if torch.is_autocast_enabled("cpu") and (always or any(_is(arg, torch.float32) for arg in args)):
        args, kwargs = tree_map(_float32, (args, kwargs))
    return function(*args, **kwargs)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `layers.attend` with the memory-efficient kernel, which supports any mask.

    The kernel saves one number per query and head for the backward pass.
    """
    bias = None
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        length = k.shape[-2]
        padded = F.pad(bias, (0, -length % 16))[..., :length]  # the kernel needs it aligned
        bias = padded.expand(*q.shape[:-1], length)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]


def _is(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _float32(value: Any) -> Any:
    return value.float() if _is(value, torch.bfloat16) else value
