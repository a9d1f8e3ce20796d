"""How much memory sampling takes, and requests cut to what there is.

A guided step is rehearsed on fake tensors, for the network, size and rows in question, and what lives at its worst
moment is counted. Nothing is measured on the device, so a bound holds before the first picture is begun.
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
from imagen.cascade.plan import Plan, tile_of
from imagen.cascade.sizes import Size
from imagen.diffusion.samplers import sample
from imagen.errors import UserError
from imagen.models.unet import LOW_PRECISION, UNet
from imagen.precision import autocast_dtype
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.denoiser import build_conditioning, build_denoiser, build_predict
from imagen.stage.sampling import Stage
from imagen.stage.tiles import Tile

GIB = 2**30


def fit(plan: Plan, stages: list[Stage], gib: float, text_tokens: int) -> Plan:
    """The plan with fewer rows, stages that leave the device, and tiles, as far as `gib` GiB of device memory ask for.

    stages: those that run. Weights stay on the device as long as they take at most half of the bound together; else
    each stage comes for its turn. Rows are halved until a step fits beside them. If a single picture does not, stages
    of super-resolution work on tiles, of halved sides.
    Raises UserError, saying what it would take, if that is not enough.
    """
    limit = gib * GIB
    weights = [weight_bytes(stage.unet) for stage in stages]
    offload = plan.device.type != "cpu" and sum(weights) > limit / 2
    dtype = autocast_dtype(plan.device, plan.precision)
    rows, tiles = [min(n, len(plan.prompts)) for n in plan.rows], list(plan.tiles)
    for i, stage in enumerate(stages):
        room = limit - (weights[i] if offload else sum(weights))
        step = partial(
            step_bytes,
            stage.config,
            plan.settings[i],
            plan.sizes[i],
            text_tokens=text_tokens,
            dtype=dtype,
            gpu=plan.device.type == "cuda",
        )
        while rows[i] > 1 and step(rows[i], tiles[i]) > room:
            rows[i] = math.ceil(rows[i] / 2)
        least = step(rows[i], tiles[i])
        while least > room:
            if (tile := _smaller(stage.config, plan.sizes[i], tiles[i])) is None:
                height, width = plan.sizes[i]
                raise UserError(
                    f"stage {stage.config.resolution} takes {(limit - room + least) / GIB:.2g} GiB for one picture of "
                    f"{height}x{width} pixels, more than the {gib:g} GiB allowed; allow more, or make a smaller one"
                )
            tiles[i] = tile
            least = step(rows[i], tile)
    return replace(plan, rows=tuple(rows), tiles=tuple(tiles), offload=offload, vram=gib)


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
    """Return the peak memory in bytes, weights excepted, when `rows` images take steps of the stage.

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
            sample(
                settings.sampler,
                denoise,
                torch.zeros(shape),
                levels,
                noise=lambda: torch.zeros(shape),
                eta=settings.eta,
            )
    return windows[0].peak - held


def _smaller(config: StageConfig, size: Size, tile: Tile | None) -> Tile | None:
    """Tiles of half the side, or None if the stage cannot work on them."""
    stride = config.unet.total_stride
    side = (max(size) if tile is None else tile.side) // 2
    if config.low_resolution is None or config.unet.coordinates or side < 8 * stride:
        return None
    return tile_of(side, stride)
