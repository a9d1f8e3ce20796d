"""torch.compile, as every network here is compiled: one graph for each shape, and never a guess at the next shape."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from imagen.kernels import TRITON

GRAPHS = 64  # of one function: training, each size of sampling, and each block of a sharded U-Net, all of them kept


def compiles(device: torch.device | str, wanted: bool | None) -> bool:
    """Whether to compile on `device`; None: on NVIDIA GPUs, where Triton is there to compile for."""
    if wanted is not None:
        return wanted
    return torch.device(device).type == "cuda" and TRITON


def prepare() -> None:
    """Let torch keep a graph for each shape. It gives up after eight otherwise, and runs uncompiled from then on."""
    config = torch._dynamo.config
    config.recompile_limit = max(GRAPHS, config.recompile_limit)


def compile_module(module: nn.Module, **options: Any) -> None:
    """Compile `module` in place, when it is first called. options: of torch.compile.

    A new shape gets a graph of its own: one for all of them, which torch would make at the second, is slower. What
    inductor made is found again in its cache (TORCHINDUCTOR_CACHE_DIR) by the next process.
    """
    prepare()
    module.compile(**{"dynamic": False, **options})


def compile_function(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` as one graph, likewise."""
    prepare()
    return torch.compile(function, **{"fullgraph": True, "dynamic": False, **options})


def cache_folder() -> str:
    """Where compiled kernels are kept."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()
