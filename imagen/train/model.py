"""Build the U-Net for training: its precision, and its distribution over ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from imagen.diffusion import randomness
from imagen.models.compiling import should_compile
from imagen.models.unet import UNet
from imagen.precision import autocast, autocast_dtype
from imagen.train.experiment import Experiment
from imagen.train.low_precision import LowPrecisionCopy
from imagen.train.parallel import build_mesh, parallelize
from imagen.train.ranks import Ranks

Context = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class TrainingModel:
    """A U-Net in training, and the modules and contexts that compute with its parameters."""

    unet: UNet  # float32 parameters, full or sharded
    network: nn.Module  # module that a step calls: `unet`, or DDP around it
    copy: LowPrecisionCopy | None  # low-precision copy that a step calls instead
    autocast: Context  # around evaluation
    step_autocast: Context  # around a training step's forward pass
    dtype: torch.dtype | None  # of the arithmetic; None: float32
    parameters: int
    trained: int  # parameters that are not frozen
    compiled: bool


def build_model(
    experiment: Experiment, ranks: Ranks, prepare: Callable[[UNet], None] = lambda unet: None
) -> TrainingModel:
    """Build a U-Net, initialize it randomly from `train.seed`, and distribute it according to `parallel`.

    prepare: called with the new U-Net on the CPU, to load weights, freeze parameters or add adapters.
    """
    device, parallel, config = ranks.device, experiment.parallel, experiment.train
    dtype = autocast_dtype(device, config.precision)
    casts = partial(autocast, device, dtype)
    mesh = build_mesh(parallel, device.type, ranks.world_size)
    # On GPUs the network computes in bfloat16 without autocast: a single process uses a low-precision copy, and FSDP2
    # gathers parameters in bfloat16. DDP needs autocast, because it wraps the float32 parameters and exchanges their
    # gradients.
    low_precision, alone = device.type == "cuda" and dtype is torch.bfloat16, ranks.world_size == 1
    torch.manual_seed(randomness.seed_for(config.seed, 0, randomness.INIT))
    unet = UNet(experiment.stage.unet)
    prepare(unet)
    unet = unet.to(device)
    if mesh is None:  # FSDP2 shards contiguous tensors only
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    parameters = sum(parameter.numel() for parameter in unet.parameters())  # before they are sharded
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    # On CPUs, group norm does not support float32 images with bfloat16 weights; on GPUs autocast handles that.
    gathered = None if device.type == "cpu" else dtype
    copy = LowPrecisionCopy(unet, torch.bfloat16) if low_precision and alone else None
    compiled = replace(parallel, compile=should_compile(device, parallel.compile))
    network = parallelize(unet, compiled, mesh, ranks.world_size, dtype=gathered)
    if copy is not None:
        parallelize(copy.network, compiled, None)
    return TrainingModel(
        unet=unet,
        network=network,
        copy=copy,
        autocast=casts,
        step_autocast=nullcontext if low_precision and (alone or mesh is not None) else casts,
        dtype=dtype,
        parameters=parameters,
        trained=trained,
        compiled=bool(compiled.compile),
    )
