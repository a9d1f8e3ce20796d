"""Compile networks with torch.compile, one static graph per input shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from imagen.kernels import HAS_TRITON

MAX_GRAPHS = 64  # per function: training, each image size in sampling, and each block of a sharded U-Net


def should_compile(device: torch.device | str, setting: bool | None) -> bool:
    """Return whether to compile on `device`. None: on NVIDIA GPUs if Triton is installed."""
    if setting is not None:
        return setting
    return torch.device(device).type == "cuda" and HAS_TRITON


def raise_recompile_limit() -> None:
    """Raise torch's limit of graphs per function, eight by default. Beyond it, torch runs the function uncompiled."""
    config = torch._dynamo.config
    config.recompile_limit = max(MAX_GRAPHS, config.recompile_limit)


def compile_module(module: nn.Module, **options: Any) -> None:
    """Compile `module` in place at its first call. options: of torch.compile.

    Each shape gets a static graph. The dynamic graph that torch would build at the second shape is slower. Later
    processes find compiled kernels in inductor's cache (TORCHINDUCTOR_CACHE_DIR).
    """
    raise_recompile_limit()
    module.compile(**{"dynamic": False, **options})


def compile_function(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `function` compiled as one static graph per shape, as in `compile_module`."""
    raise_recompile_limit()
    return torch.compile(function, **{"fullgraph": True, "dynamic": False, **options})


def cache_folder() -> str:
    """Return inductor's cache folder of compiled kernels."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()
