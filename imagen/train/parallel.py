"""Distribute a U-Net over ranks, apply activation checkpointing, and compile it, outside the model's code."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from imagen.models.blocks import Block
from imagen.models.compiling import compile_function, compile_module, should_compile
from imagen.models.layers import ResBlock
from imagen.models.unet import UNet
from imagen.train.config import ParallelConfig
from imagen.train.layout import make_views, permute_to_nhwc
from imagen.train.ranks import Ranks


def build_mesh(config: ParallelConfig, device_type: str, world_size: int) -> DeviceMesh | None:
    """Return a mesh of the ranks: (shard,), or (replicate, shard) with several replicas; None if nothing is sharded."""
    shard = min(config.shard, world_size)
    if shard == 1:
        return None
    if shard == world_size:
        return init_device_mesh(device_type, (shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (world_size // shard, shard), mesh_dim_names=("replicate", "shard"))


def parallelize(
    unet: UNet,
    config: ParallelConfig,
    mesh: DeviceMesh | None,
    world_size: int = 1,
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Distribute and compile `unet` in place, and return the network to call in training: `unet`, or DDP around it.

    Call it once, on a new U-Net. Parameter names do not change.

    dtype: dtype of gathered parameters, if sharded; None: float32. Gradients are reduced and parameters are updated in
    float32.
    """
    device = next(unet.parameters()).device
    compiled = should_compile(device, config.compile)
    # A sharded network is compiled block by block: a graph cannot contain the all-gather of parameters.
    apply_activation_checkpointing(unet, config, compiled=compiled and mesh is not None)
    if mesh is not None:
        permute_to_nhwc(unet)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in shard_units(unet):
            if compiled and isinstance(module, ResBlock):  # other units are a single convolution
                module.forward = compile_function(module.forward)  # type: ignore[method-assign]
            fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(unet, mesh=mesh, mp_policy=policy)
        make_views(unet)
        return unet
    if compiled:
        if world_size > 1 and config.checkpointing != "none":
            torch._dynamo.config.optimize_ddp = False  # cannot split graphs with checkpointed blocks
        compile_module(unet, fullgraph=True)
    if world_size == 1:
        return unet
    return DistributedDataParallel(
        unet,
        device_ids=None if device.type == "cpu" else [device],
        gradient_as_bucket_view=True,
    )


def describe(config: ParallelConfig, ranks: Ranks) -> str:
    """Describe how a model is distributed over devices, as in "8 x cuda (2 replicas)"."""
    size, shard = ranks.world_size, min(config.shard, ranks.world_size)
    if size == 1:
        return str(ranks.device)
    replicas = size // shard
    return f"{size} x {ranks.device.type} ({replicas} replica{'s' if replicas > 1 else ''})"


def apply_activation_checkpointing(unet: UNet, config: ParallelConfig, *, compiled: bool = False) -> None:
    """Apply activation checkpointing to exactly the blocks that `config.checkpointing` selects.

    compiled: compile each block separately, inside the checkpoint, because torch does not compile a checkpointed
    region.
    """
    for level, block in blocks_by_level(unet):
        vars(block).pop("forward", None)
        if compiled:
            block.forward = compile_function(block.forward)  # type: ignore[method-assign]
        if config.checkpointing == "full" or level in config.checkpoint_levels:
            # A wrapper module would rename the parameters. Dropout is the only random layer.
            recomputed = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = partial(recomputed, preserve_rng_state=unet.config.dropout > 0)  # type: ignore[method-assign]


def blocks_by_level(unet: UNet) -> Iterator[tuple[int, Block]]:
    """Yield (level, block) of the down path, the middle and the up path; level 0 has the largest images."""
    last = len(unet.config.levels) - 1
    for level, part in enumerate(unet.down):
        yield from ((level, block) for block in part.blocks)
    yield from ((last, block) for block in unet.middle)
    for number, part in enumerate(unet.up):
        yield from ((last - number, block) for block in part.blocks)


def shard_units(unet: UNet) -> Iterator[nn.Module]:
    """Yield the modules that are gathered and resharded as a unit: blocks, and resampling layers with parameters.

    The few other parameters remain gathered from the forward to the backward pass.
    """
    yield from (block for _, block in blocks_by_level(unet))
    for part in (*unet.down, *unet.up):
        if part.resample is not None and any(True for _ in part.resample.parameters()):
            yield part.resample


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager:
    """Return a context for the passes of a micro-batch, in which replicas exchange gradients only if it is the last.

    Within a sharded replica, gradients are reduced after every micro-batch: full gradients would not fit in memory.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
    elif isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()
