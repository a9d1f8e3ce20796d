"""How a U-Net is spread over ranks, recomputed and compiled: all of it applied from outside the model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from imagen.errors import UserError, check_number
from imagen.models.compiling import compile_function, compile_module, compiles
from imagen.models.layers import ResBlock
from imagen.models.unet import Block, UNet
from imagen.train.layout import make_views, own_nhwc
from imagen.train.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """None of this changes what a step computes, but for rounding: a run may go on with other values."""

    # Ranks that hold one copy of parameters, gradients, averages and optimizer between them. 1: every rank has all
    # (DDP). As many as there are ranks, or more: all share one copy (FSDP2). Between: copies of that many ranks each
    # (HSDP), best as many as one machine has GPUs.
    shard: int = 1
    # Activations that the backward pass computes again instead of keeping them: of no block, of all, or of the blocks
    # of `checkpoint_levels` (0: the largest pictures). A quarter to a third more time for much less memory.
    checkpointing: Literal["none", "full", "selective"] = "none"
    checkpoint_levels: tuple[int, ...] = ()
    # torch.compile: minutes at the first start, seconds at the next. None: on NVIDIA GPUs alone.
    compile: bool | None = None

    def check(self, levels: int, world_size: int = 1) -> None:
        """UserError, naming the field, unless the values fit a U-Net of so many levels and so many ranks."""
        check_number("parallel.shard", self.shard, least=1)
        if world_size > self.shard and world_size % self.shard:
            raise UserError(
                f"parallel.shard is {self.shard}, which does not divide {world_size} ranks; "
                f"choose a divisor, or {world_size} to share one copy among all"
            )
        if (self.checkpointing == "selective") != bool(self.checkpoint_levels):
            raise UserError("parallel.checkpoint_levels belongs to parallel.checkpointing selective: give both or none")
        for level in self.checkpoint_levels:
            check_number("parallel.checkpoint_levels", level, least=0, below=levels)


def build_mesh(config: ParallelConfig, device_type: str, world_size: int) -> DeviceMesh | None:
    """The ranks as a line (all share one copy) or a table (copies x shards); None where nothing is sharded."""
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
    """The network to call in training; `unet` keeps its parameters' names, and is that network unless it is DDP.

    dtype: in which sharded parameters are gathered; None: as they are (float32). Gradients are reduced, and parameters
    updated, in float32. Call it once, on a new U-Net.
    """
    device = next(unet.parameters()).device
    compiled = compiles(device, config.compile)
    # By unit where it is sharded: a graph cannot contain the gathering of parameters.
    recompute(unet, config, compiled=compiled and mesh is not None)
    if mesh is not None:
        own_nhwc(unet)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in shard_units(unet):
            if compiled and isinstance(module, ResBlock):  # other resamplings are one convolution
                module.forward = compile_function(module.forward)  # type: ignore[method-assign]
            fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(unet, mesh=mesh, mp_policy=policy)
        make_views(unet)
        return unet
    if compiled:
        if world_size > 1 and config.checkpointing != "none":
            torch._dynamo.config.optimize_ddp = False  # it cannot cut a graph that has recomputed blocks into buckets
        compile_module(unet, fullgraph=True)
    if world_size == 1:
        return unet
    return DistributedDataParallel(
        unet,
        device_ids=None if device.type == "cpu" else [device],
        gradient_as_bucket_view=True,
    )


def spread(config: ParallelConfig, ranks: Ranks) -> str:
    """How a model is spread over devices, in words."""
    size, shard = ranks.world_size, min(config.shard, ranks.world_size)
    if size == 1:
        return str(ranks.device)
    how = "a copy each" if shard == 1 else "one copy" if shard == size else f"{size // shard} copies"
    return f"{size} x {ranks.device.type} ({how})"


def recompute(unet: UNet, config: ParallelConfig, *, compiled: bool = False) -> None:
    """Have the blocks that `config.checkpointing` names computed again in the backward pass, and no others.

    compiled: each block by itself, inside of what is computed again, which torch does not compile on its own.
    """
    for level, block in leveled_blocks(unet):
        vars(block).pop("forward", None)
        if compiled:
            block.forward = compile_function(block.forward)  # type: ignore[method-assign]
        if config.checkpointing == "full" or level in config.checkpoint_levels:
            # Not a wrapper module, which would rename the parameters. Dropout is the only random layer there is.
            recomputed = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = partial(recomputed, preserve_rng_state=unet.config.dropout > 0)  # type: ignore[method-assign]


def leveled_blocks(unet: UNet) -> Iterator[tuple[int, Block]]:
    """(level, block) of every block of the U-Net, on the way down, in the middle, and up; level 0: largest pictures."""
    last = len(unet.config.levels) - 1
    for level, half in enumerate(unet.down):
        yield from ((level, block) for block in half.blocks)
    yield from ((last, block) for block in unet.middle)
    for number, half in enumerate(unet.up):
        yield from ((last - number, block) for block in half.blocks)


def shard_units(unet: UNet) -> Iterator[nn.Module]:
    """What is gathered and freed as one: each block, and each resampling that has parameters. The rest, which is
    little, stays gathered from the forward to the backward pass."""
    yield from (block for _, block in leveled_blocks(unet))
    for half in (*unet.down, *unet.up):
        if half.resample is not None and any(True for _ in half.resample.parameters()):
            yield half.resample


def last_backward(network: nn.Module, last: bool) -> AbstractContextManager:
    """Around the forward and backward of a micro-batch: only the last one of a step exchanges whole gradients.

    Sharded gradients are reduced within a copy every time, since whole ones would not fit; between copies, once.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
    elif isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()
