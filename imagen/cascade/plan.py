"""A request to a cascade with every default filled in, and every mistake found before anything is computed."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from imagen.cascade.config import Sampler, SamplingConfig, StageConfig
from imagen.errors import UserError
from imagen.models.precision import Precision, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `Cascade.run` will do. Per-picture fields have one entry a picture, per-stage ones one a stage that runs."""

    prompts: tuple[str, ...]  # "" is the unconditional model
    seeds: tuple[int, ...]
    start: tuple[Image.Image, ...] | None  # pictures that the first stage enlarges, or None: it makes them
    first: int  # index in the cascade of the first stage that runs
    settings: tuple[SamplingConfig, ...]
    sizes: tuple[tuple[int, int], ...]  # (height, width) of what each stage makes
    batch_size: int
    device: torch.device
    precision: Precision  # "fp32" or "bf16", never "auto"

    def only(self, pictures: Sequence[int]) -> "Plan":
        """The same request for some of its pictures."""
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[i] for i in pictures),
            seeds=tuple(self.seeds[i] for i in pictures),
            start=None if self.start is None else tuple(self.start[i] for i in pictures),
        )


def make_plan(
    cascade: Sequence[StageConfig],
    prompts: Sequence[str],
    *,
    seeds: int | Sequence[int] | None = None,
    start: Sequence[Image.Image] | None = None,
    stages: int | None = None,
    settings: Sequence[SamplingConfig] | None = None,
    steps: int | Sequence[int] | None = None,
    guidance: float | Sequence[float] | None = None,
    low_res_noise: float | Sequence[float] | None = None,
    sampler: Sampler | Sequence[Sampler] | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
) -> Plan:
    """Fill in defaults and check; see `Cascade.sample` for the arguments. Raises UserError."""
    if isinstance(prompts, str):
        raise TypeError("prompts is a list of strings, not one string")
    if not prompts:
        raise UserError("no prompts: give at least one (an empty string makes a picture without a prompt)")
    check_count(stages, cascade)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
    last = (stages or len(cascade)) - 1
    first = _first_stage(cascade[: last + 1], start)
    run = cascade[first : last + 1]

    if start is not None and len(start) != len(prompts):
        raise UserError(f"{len(start)} pictures to start from but {len(prompts)} prompts; give one prompt a picture")
    if start is not None and size is not None:
        raise UserError("size follows from the pictures to start from; leave it out")
    sizes = _sizes(run, size) if start is None else _sizes_from(run, start)

    overrides: dict[str, Any] = {
        "steps": steps,
        "guidance": guidance,
        "low_res_noise": low_res_noise,
        "sampler": sampler,
    }
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Plan(
        prompts=tuple(prompts),
        seeds=_seeds(seeds, len(prompts)),
        start=None if start is None else tuple(start),
        first=first,
        settings=_settings(run, settings, overrides),
        sizes=sizes,
        batch_size=batch_size,
        device=device,
        precision="fp32" if autocast_dtype(device, precision) is None else "bf16",
    )


def check_count(stages: int | None, cascade: Sequence[StageConfig]) -> None:
    """Raise UserError unless `stages` of the cascade's stages can run (None: all)."""
    if stages is not None and not 1 <= stages <= len(cascade):
        raise UserError(f"stages is {stages}; this cascade has {_numbered(cascade)}, so choose 1 to {len(cascade)}")


def _first_stage(cascade: Sequence[StageConfig], start: Sequence[Image.Image] | None) -> int:
    """Without pictures the base; with pictures the stage that was trained for the size nearest below theirs."""
    if start is None:
        low = cascade[0].low_resolution
        if low is not None:
            raise UserError(
                f"this cascade has no base stage: it enlarges {low}x{low} pictures, so give it some to start from"
            )
        return 0
    enlarging = [index for index, stage in enumerate(cascade) if stage.low_resolution is not None]
    if not enlarging:
        raise UserError(f"nothing to enlarge with: the stages asked for are {_numbered(cascade)}, a base alone")
    if len({picture.size for picture in start}) > 1:
        raise UserError("the pictures to start from differ in size; enlarge those of each size separately")
    side = min(start[0].size)
    fitting = [index for index in enlarging if (cascade[index].low_resolution or 0) <= side]
    return fitting[-1] if fitting else enlarging[0]


def _seeds(seeds: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    seeds = [seeds or 0] * count if seeds is None or isinstance(seeds, int) else [int(seed) for seed in seeds]
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts; give one for each, or one for all")
    if min(seeds) < 0:
        raise UserError(f"seed {min(seeds)} is negative; seeds are whole numbers from 0")
    return tuple(seeds)


def _settings(
    run: Sequence[StageConfig], settings: Sequence[SamplingConfig] | None, overrides: dict[str, Any]
) -> tuple[SamplingConfig, ...]:
    if settings is not None and len(settings) != len(run):
        raise UserError(f"{len(settings)} settings, but {_numbered(run)} run; give one for each")
    result = list(settings) if settings is not None else [stage.sampling for stage in run]
    for name, value in overrides.items():
        if value is None:
            continue
        values = [value] * len(run) if isinstance(value, str | int | float) else list(value)
        if len(values) != len(run):
            raise UserError(f"{len(values)} values of {name}, but {_numbered(run)} run; give one for each or for all")
        for i, new in enumerate(values):
            change: dict[str, Any] = {name: new}
            result[i] = dataclasses.replace(result[i], **change)
    for stage, resolved in zip(run, result, strict=True):
        resolved.check(f"stage {stage.resolution}")
        stage.schedule.check_steps(f"stage {stage.resolution}", resolved.steps)
    return tuple(result)


def _sizes(run: Sequence[StageConfig], size: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """(height, width) of each stage, given that of the last; None: the square that it was trained on."""
    reference = run[-1].resolution
    height, width = size or (reference, reference)
    _check_divides((height, width), _unit(run, reference), "size")
    return tuple((height * stage.resolution // reference, width * stage.resolution // reference) for stage in run)


def _sizes_from(run: Sequence[StageConfig], start: Sequence[Image.Image]) -> tuple[tuple[int, int], ...]:
    reference = run[0].low_resolution or 1
    width, height = start[0].size
    _check_divides((height, width), _unit(run, reference), "the size of the pictures to start from")
    return tuple((height * stage.resolution // reference, width * stage.resolution // reference) for stage in run)


def _unit(run: Sequence[StageConfig], reference: int) -> int:
    """Sides that are multiples of this, at resolution `reference`, divide by every stage's stride at its own."""
    units = []
    for stage in run:
        needed = stage.unet.total_stride * reference  # side * resolution must divide by it
        units.append(needed // math.gcd(needed, stage.resolution))
    return math.lcm(*units)


def _check_divides(size: tuple[int, int], unit: int, what: str) -> None:
    if all(side > 0 and side % unit == 0 for side in size):
        return
    nearest = []
    for side in size:
        below, above = side // unit * unit, -(-side // unit) * unit
        nearest.append(" or ".join(str(side) for side in sorted({max(below, unit), max(above, unit)})))
    raise UserError(
        f"{what} is {size[0]}x{size[1]} (height x width), but sides must divide by {unit}; "
        f"nearest: height {nearest[0]}, width {nearest[1]}"
    )


def _numbered(stages: Sequence[StageConfig]) -> str:
    names = ", ".join(str(stage.resolution) for stage in stages)
    return f"{len(stages)} stage{'s' if len(stages) > 1 else ''} ({names})"
