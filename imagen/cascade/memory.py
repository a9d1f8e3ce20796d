"""How much memory sampling takes, and requests cut to what there is.

A guided step runs on fake tensors, for the network, size and micro-batch in question, and its peak of live memory is
counted. Nothing is measured on the device, so a bound holds before the first image is begun.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from imagen.accounting.gpu_kernels import gpu_kernels
from imagen.accounting.ledger import Ledger
from imagen.cascade.options import Size
from imagen.cascade.request import Request, tile_of
from imagen.errors import UserError
from imagen.models.unet import LOW_PRECISION, UNet
from imagen.precision import autocast_dtype
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import build_conditioning, build_denoiser, build_predict
from imagen.stage.sampling import Stage
from imagen.stage.tiles import Tile

GIB = 2**30


def fit_to_memory(request: Request, stages: list[Stage], text_tokens: int) -> Request:
    """Return the request with smaller micro-batches, offloaded stages, and tiles, as `request.vram` needs them.

    stages: those that run. Weights remain on the device if they take at most half of the bound together; else each
    stage is on it only while it runs. Micro-batches are halved until a step fits beside the weights. If a single image
    does not, super-resolution stages work on tiles, of halved sides.
    Raises UserError, with the memory that it would take, if that is not enough.
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
        step = partial(
            step_bytes,
            stage.config,
            request.settings[i],
            request.sizes[i],
            text_tokens=text_tokens,
            dtype=dtype,
            gpu=request.device.type == "cuda",
        )
        while sizes[i] > 1 and step(sizes[i], tiles[i]) > room:
            sizes[i] = math.ceil(sizes[i] / 2)
        least = step(sizes[i], tiles[i])
        while least > room:
            if (tile := _smaller(stage.config, request.sizes[i], tiles[i])) is None:
                height, width = request.sizes[i]
                raise UserError(
                    f"stage {stage.config.resolution} takes {(limit - room + least) / GIB:.2g} GiB for one picture of "
                    f"{height}x{width} pixels, more than the {gib:g} GiB allowed; allow more, or make a smaller one"
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
    rows: int,
    tile: Tile | None = None,
    *,
    text_tokens: int = 0,
    dtype: torch.dtype | None = None,
    gpu: bool = False,
) -> int:
    """Return the peak of live bytes, without weights, when a micro-batch of `rows` images takes steps of the stage.

    dtype: of the U-Net's arithmetic; None: float32. gpu: the arithmetic is a GPU's, else a CPU's.
    Excludes the memory of libraries and what the allocator cannot use.
    """
    unet_config, cpu = config.unet, torch.device("cpu")
    shape = (rows, unet_config.image_channels, *size)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), FakeTensorMode(), Ledger() as ledger:
        unet = UNet(unet_config).eval().requires_grad_(False)
        throughout = gpu and dtype in LOW_PRECISION  # as `Network` computes on GPUs
        for parameter in unet.parameters():  # as `build_unet` casts them
            if dtype is not None and (parameter.ndim > 1 or throughout):
                parameter.data = parameter.data.to(dtype)
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        held = ledger.mark("parameters", [*unet.parameters(), *unet.buffers()])
        with ledger.window() as windows, gpu_kernels() if gpu else nullcontext():
            texts = low_BChw = None
            if unet_config.text_width is not None:
                texts = [torch.zeros(max(text_tokens, 1), unet_config.text_width)] * rows
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
            predict = build_predict(unet, None if throughout else dtype)
            denoise = build_denoiser(predict, config, settings, conditioning, tile=tile)
            levels = [0.0, 1.0, 2.0, math.inf]  # the second step remembers the first one's estimate
            settings.build_sampler().sample(denoise, torch.zeros(shape), levels, noise=lambda: torch.zeros(shape))
    return windows[0].peak - held


def _smaller(config: StageConfig, size: Size, tile: Tile | None) -> Tile | None:
    """Tiles of half the side, or None if the stage cannot work on them."""
    stride = config.unet.total_stride
    side = (max(size) if tile is None else tile.side) // 2
    if config.low_resolution is None or config.unet.coordinates or side < 8 * stride:
        return None
    return tile_of(side, stride)
