"""Resolve the options of a request that have one value per stage."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from imagen.cascade.options import PerStage, Size
from imagen.errors import UserError, check_number
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.tiles import Tile

STRENGTH = 0.7  # of a whole init image: follows the prompt, and the image remains recognisable
PAIRS = ("guidance_interval", "logsnr_range")  # fields with a pair of numbers as one value
ALL = "all"  # as a `guidance_interval`: guidance at every log-SNR; None alone is no override


def resolve_strengths(
    run: Sequence[StageConfig], strength: float | Sequence[float] | None, *, whole: bool
) -> tuple[float, ...]:
    """Return the strength of each stage. Raises UserError unless all are above 0 and at most 1.

    whole: an init image without a mask is regenerated, so that a strength of 1 would ignore it; the default is lower.
    """
    if strength is None:
        strength = STRENGTH if whole else 1.0
    values = _for_stages(run, strength, "strength")
    for stage, value in zip(run, values, strict=True):
        check_number(f"stage {stage.resolution}: strength", value, above=0, most=1)
    return tuple(values)


def resolve_settings(
    run: Sequence[StageConfig], settings: Sequence[SamplingConfig] | None, overrides: dict[str, Any]
) -> tuple[SamplingConfig, ...]:
    """Return the sampling settings of each stage, with overrides applied and checked. Raises UserError."""
    if settings is not None and len(settings) != len(run):
        raise UserError(f"{len(settings)} settings, but {name_stages(run)} run; give one for each")
    result = list(settings) if settings is not None else [stage.sampling for stage in run]
    for name, value in overrides.items():
        if value is None:
            continue
        if name in PAIRS and (name, value) != ("guidance_interval", ALL):
            one = len(value) == 2 and all(isinstance(each, int | float) for each in value)
            value = tuple(value) if one else list(value)
        for i, new in enumerate(_for_stages(run, value, name)):
            change: dict[str, Any] = {name: None if name == "guidance_interval" and new == ALL else new}
            result[i] = dataclasses.replace(result[i], **change)
    for stage, resolved in zip(run, result, strict=True):
        resolved.check(f"stage {stage.resolution}")
        stage.schedule.check_steps(f"stage {stage.resolution}", resolved.steps)
    return tuple(result)


def _for_stages(run: Sequence[StageConfig], value: Any, name: str) -> list[Any]:
    """Return one value per stage, from a list of values or one value for all."""
    pair = name in PAIRS and isinstance(value, tuple)
    values = list(value) if isinstance(value, list | tuple) and not pair else [value] * len(run)
    if len(values) != len(run):
        raise UserError(f"{len(values)} values of {name}, but {name_stages(run)} run; give one for each or for all")
    return values


def resolve_micro_batches(run: Sequence[StageConfig], batch_size: int, given: PerStage[int] | None) -> tuple[int, ...]:
    """Return the micro-batch of each stage, at most `batch_size`. Raises UserError if one is below 1."""
    values = _for_stages(run, batch_size if given is None else given, "micro_batch")
    for value in values:
        check_number("micro_batch", value, least=1)
    return tuple(min(value, batch_size) for value in values)


def resolve_tiles(run: Sequence[StageConfig], sizes: Sequence[Size], tile: Any) -> tuple[Tile | None, ...]:
    """Return the tiles of super-resolution stages whose images are larger than a tile."""
    result: list[Tile | None] = []
    for stage, size, side in zip(run, sizes, _for_stages(run, tile, "tile"), strict=True):
        if side is None or stage.low_resolution is None or max(size) <= side:
            result.append(None)
            continue
        stride = stage.unet.total_stride
        if stage.unet.coordinates:
            raise UserError(f"stage {stage.resolution} is conditioned on pixel coordinates: it cannot run on tiles")
        if side < 4 * stride:
            raise UserError(f"stage {stage.resolution}: tile is {side}; it must be {4 * stride} or more")
        result.append(tile_of(side, stride))
    return tuple(result)


def tile_of(side: int, stride: int) -> Tile:
    """Return tiles of about this side for a U-Net of that total stride; adjacent tiles overlap by about a quarter.

    The result depends on the rounded side alone, which images record.
    """
    side = side // stride * stride
    return Tile(side=side, overlap=math.ceil(side / 4 / stride) * stride)


def name_stages(stages: Sequence[StageConfig]) -> str:
    """Return the number of stages and their resolutions, for messages: "2 stages (64, 256)"."""
    names = ", ".join(str(stage.resolution) for stage in stages)
    return f"{len(stages)} stage{'s' if len(stages) > 1 else ''} ({names})"
