"""Count the memory of sampling, and make requests fit a bound.

A guided step runs on fake tensors with the network, size and micro-batch of the request, and its peak of live memory is
counted. Nothing is measured on the device, so the bound is checked before the first image is sampled.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from imagen.accounting.gpu_kernels import gpu_kernels
from imagen.accounting.tracker import ResourceTracker
from imagen.cascade.options import Size
from imagen.cascade.per_stage import tile_of
from imagen.cascade.request import Request
from imagen.errors import UserError
from imagen.models.config import UNetConfig
from imagen.models.unet import LOW_PRECISION, UNet
from imagen.precision import autocast_dtype
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import build_conditioning, build_denoiser, build_predict
from imagen.stage.sampling import Stage
from imagen.stage.tiles import Tile

GIB = 2**30


def fit_to_memory(request: Request, stages: list[Stage], text_tokens: int) -> Request:
    """Return the request with smaller micro-batches, offloading and tiles as needed to fit in `request.vram`.

    stages: the stages that run. If all weights take more than half of the bound, each stage is on the device only while
    it runs. Micro-batches are halved until a step fits beside the weights. If one image does not fit, super-resolution
    stages run on tiles, whose side is halved until they do.
    Raises UserError, with the memory needed, if even the smallest tiles do not fit.
    """
    if request.vram is None:
        return request
    gib, limit = request.vram, request.vram * GIB
    weights = [weight_bytes(stage.unet) for stage in stages]
    offload = request.device.type != "cpu" and sum(weights) > limit / 2
    dtype = autocast_dtype(request.device, request.precision)
    sizes, tiles = [min(n, len(request.prompts)) for n in request.micro_batch], list(request.tiles)
    for i, stage in enumerate(stages):
        room = limit - (weights[i] if offload else sum(weights))
        step = cache(  # the last of the loop below is needed once more
            partial(
                step_bytes,
                stage.config,
                request.settings[i],
                request.sizes[i],
                text_tokens=text_tokens,
                dtype=dtype,
                gpu=request.device.type == "cuda",
            )
        )
        while sizes[i] > 1 and step(sizes[i], tiles[i]) > room:
            sizes[i] = math.ceil(sizes[i] / 2)
        least = step(sizes[i], tiles[i])
        while least > room:
            if (tile := _smaller(stage.config, request.sizes[i], tiles[i])) is None:
                height, width = request.sizes[i]
                raise UserError(
                    f"stage {stage.config.resolution} takes {(limit - room + least) / GIB:.2g} GiB for one image of "
                    f"{height}x{width} pixels, more than the {gib:g} GiB allowed; allow more, or sample a smaller image"
                )
            tiles[i] = tile
            least = step(sizes[i], tile)
    return replace(request, micro_batch=tuple(sizes), tiles=tuple(tiles), offload=offload)


def weight_bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def step_bytes(
    config: StageConfig,
    settings: SamplingConfig,
    size: Size,
    batch_size: int,
    tile: Tile | None = None,
    *,
    text_tokens: int = 0,
    dtype: torch.dtype | None = None,
    gpu: bool = False,
) -> int:
    """Return the peak of live bytes, without weights, of sampler steps of a stage with `batch_size` images.

    dtype: of the U-Net's arithmetic; None: float32. gpu: count the kernels of a GPU, else of a CPU.
    Excludes library workspaces and fragmentation.
    """
    unet_config, cpu = config.unet, torch.device("cpu")
    shape = (batch_size, unet_config.image_channels, *size)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), FakeTensorMode(), ResourceTracker() as tracker:
        unet, around = frozen_unet(unet_config, dtype, gpu)
        held = tracker.mark("parameters", [*unet.parameters(), *unet.buffers()])
        with tracker.interval() as intervals, gpu_kernels() if gpu else nullcontext():
            texts = low_BChw = None
            if unet_config.text_width is not None:
                texts = [torch.zeros(max(text_tokens, 1), unet_config.text_width)] * batch_size
            if config.low_resolution is not None:
                scale = config.resolution // config.low_resolution
                low_size = [max(side // scale, 1) for side in size]
                low_BChw = torch.zeros(*shape[:2], *low_size, dtype=torch.uint8)
            conditioning = build_conditioning(
                config,
                settings,
                size=size,
                device=cpu,
                texts=texts,
                negatives=texts,
                low_BChw=low_BChw,
                augmentation_eps=lambda: torch.zeros(shape),
            )
            predict = build_predict(unet, around)
            denoise = build_denoiser(predict, config, settings, conditioning, tile=tile)
            levels = [0.0, 1.0, 2.0, math.inf]  # the second step holds the first step's estimate, too
            settings.build_sampler().sample(denoise, torch.zeros(shape), levels, noise=lambda: torch.zeros(shape))
    return intervals[0].peak - held


def frozen_unet(config: UNetConfig, dtype: torch.dtype | None, gpu: bool) -> tuple[UNet, torch.dtype | None]:
    """Return a U-Net that only samples, and its autocast dtype, as `build_unet` and `Network` give them.

    Call it under FakeTensorMode. dtype, gpu: see `step_bytes`.
    """
    unet = UNet(config).eval().requires_grad_(False)
    throughout = gpu and dtype in LOW_PRECISION  # as `Network` computes on GPUs
    for parameter in unet.parameters():  # as `build_unet` casts them
        if dtype is not None and (parameter.ndim > 1 or throughout):
            parameter.data = parameter.data.to(dtype)
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return unet, None if throughout else dtype


def _smaller(config: StageConfig, size: Size, tile: Tile | None) -> Tile | None:
    """Return tiles of half the side, or None if the stage cannot run on them."""
    stride = config.unet.total_stride
    side = (max(size) if tile is None else tile.side) // 2
    if config.low_resolution is None or config.unet.coordinates or side < 8 * stride:
        return None
    return tile_of(side, stride)
