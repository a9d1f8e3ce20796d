"""A request to a cascade with every default filled in, and every mistake found before anything is computed."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from imagen import limits
from imagen.cascade.sizes import Size, sizes_above, sizes_for, sizes_like
from imagen.devices import default_device
from imagen.diffusion.noise import NoiseKind, Variation
from imagen.errors import UserError, check_number, check_text, quoted, suggest
from imagen.precision import Precision, autocast_dtype, precision_name
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.tiles import Tile

FIELDS = tuple(field.name for field in dataclasses.fields(SamplingConfig))
PAIRS = ("guidance_interval", "logsnr_range")  # fields whose one value is two numbers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `Cascade.run` will do. Per-picture fields have one entry a picture, per-stage ones one a stage that runs."""

    prompts: tuple[str, ...]  # "" is the unconditional model
    negatives: tuple[str, ...]  # what guidance leads away from; "" is the unconditional model
    seeds: tuple[int | Variation, ...]
    start: tuple[Image.Image, ...] | None  # pictures that the first stage enlarges, or None: it makes them
    start_size: Size | None  # of those, padded to what the stages can take
    init: tuple[Image.Image, ...] | None  # pictures that every stage begins with, or keeps a part of
    masks: tuple[Image.Image, ...] | None  # white is drawn anew
    first: int  # index in the cascade of the first stage that runs
    settings: tuple[SamplingConfig, ...]
    strength: tuple[float, ...]  # share of the steps that are taken from init; 1 without
    sizes: tuple[Size, ...]  # (height, width) of what each stage makes
    crop: Size  # of the result
    tiles: tuple[Tile | None, ...]
    batch_size: int  # pictures that go through the stages together
    rows: tuple[int, ...]  # pictures in one call of the network, at most batch_size
    device: torch.device
    precision: Precision  # never "auto"
    noise: NoiseKind = "philox"  # what draws it
    vram: float | None = None  # GiB of device memory that this was cut to, see `imagen.cascade.memory`
    offload: bool = False  # stages are on the device for their turn alone

    def batches(self) -> list[range]:
        """The pictures in the groups in which they are computed, whoever computes them."""
        count, size = len(self.prompts), self.batch_size
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def make_plan(
    cascade: Sequence[StageConfig],
    prompts: Sequence[str],
    *,
    negative: str | Sequence[str] = "",
    seeds: int | Sequence[int | Variation] | None = None,
    start: Sequence[Image.Image] | None = None,
    init: Image.Image | Sequence[Image.Image] | None = None,
    mask: Image.Image | Sequence[Image.Image] | None = None,
    strength: float | Sequence[float] | None = None,
    stages: int | None = None,
    scale: int | None = None,
    settings: Sequence[SamplingConfig] | None = None,
    size: Size | None = None,
    tile: int | Sequence[int | None] | None = None,
    batch_size: int = 8,
    rows: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    noise: NoiseKind = "philox",
    **overrides: Any,
) -> Plan:
    """Fill in defaults and check; see `Cascade.sample` for the arguments. Raises UserError."""
    if isinstance(prompts, str):
        raise TypeError("prompts is a list of strings, not one string")
    for name in overrides:
        if name not in FIELDS:
            raise TypeError(f"sampling has no setting {name!r}{suggest(name, FIELDS)}")
    count = len(prompts)
    if not count:
        raise UserError("no prompts: give at least one (an empty string makes a picture without a prompt)")
    negatives = (negative,) * count if isinstance(negative, str) else _exactly(negative, count, "negative prompts")
    for prompt in {*prompts, *negatives}:
        check_prompt(prompt)
    check_count(stages, cascade)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
    last = (stages or len(cascade)) - 1
    first, last = (0, last) if start is None else _enlarging(cascade[: last + 1], start, scale)
    run = cascade[first : last + 1]
    _check_given(run, count, start=start, init=init, mask=mask, strength=strength, size=size)

    inits, masks = _each(init, count, "init pictures"), _each(mask, count, "masks")
    start_size: Size | None = None
    if start is not None:
        start_size, sizes, crop = sizes_above(run, (start[0].height, start[0].width))
    else:
        sizes = sizes_for(run, size) if size or inits is None else sizes_like(run, (inits[0].height, inits[0].width))
        crop = sizes[-1]
    device = torch.device(device or default_device())
    return Plan(
        prompts=tuple(prompts),
        negatives=negatives,
        seeds=_seeds(seeds, count),
        start=None if start is None else tuple(start),
        start_size=start_size,
        init=inits,
        masks=masks,
        first=first,
        settings=_settings(run, settings, overrides),
        strength=_strengths(run, strength),
        sizes=sizes,
        crop=crop,
        tiles=_tiles(run, sizes, tile),
        batch_size=batch_size,
        rows=tuple(min(n, batch_size) for n in _for_stages(run, batch_size if rows is None else rows, "rows")),
        device=device,
        precision=precision_name(autocast_dtype(device, precision)),
        noise=noise,
    )


def check_prompt(prompt: Any) -> None:
    """UserError unless it is text, and of a length that can be read."""
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is {quoted(prompt)}; it must be text")
    check_text("a prompt", prompt, limits.CHARACTERS)


def check_count(stages: int | None, cascade: Sequence[StageConfig]) -> None:
    """Raise UserError unless `stages` of the cascade's stages can run (None: all)."""
    if stages is not None and not 1 <= stages <= len(cascade):
        raise UserError(f"stages is {stages}; this cascade has {_numbered(cascade)}, so choose 1 to {len(cascade)}")


def _check_given(run: Sequence[StageConfig], count: int, **given: Any) -> None:
    """What was given must belong together."""
    start, init = given["start"], given["init"]
    if start is None and run[0].low_resolution is not None:
        low = run[0].low_resolution
        raise UserError(
            f"this cascade has no base stage: it enlarges {low}x{low} pictures, so give it some to start from"
        )
    if start is not None:
        if len(start) != count:
            raise UserError(f"{len(start)} pictures to start from but {count} prompts; give one prompt a picture")
        if given["size"] is not None:
            raise UserError("size follows from the pictures to start from; leave it out")
        if init is not None:
            raise UserError("pictures to start from are enlarged, init pictures are drawn anew; give one of the two")
    if init is None and (given["mask"] is not None or given["strength"] is not None):
        name = "mask" if given["mask"] is not None else "strength"
        raise UserError(f"{name} says what happens to an init picture; give one")


def _enlarging(cascade: Sequence[StageConfig], start: Sequence[Image.Image], scale: int | None) -> tuple[int, int]:
    """First and last stage for pictures: from the one trained for the size nearest below theirs, to the end.

    With `scale`, so many that they enlarge by this, among such stages those that begin nearest below.
    """
    enlarging = [index for index, stage in enumerate(cascade) if stage.low_resolution is not None]
    if not enlarging:
        raise UserError(f"nothing to enlarge with: the stages asked for are {_numbered(cascade)}, a base alone")
    if len({picture.size for picture in start}) > 1:
        raise UserError("the pictures to start from differ in size; enlarge those of each size separately")
    spans = [(a, len(cascade) - 1) for a in enlarging]
    if scale is not None:
        factors = {
            (a, b): cascade[b].resolution // (cascade[a].low_resolution or 1)
            for a, b in itertools.combinations_with_replacement(enlarging, 2)
        }
        spans = sorted(span for span, factor in factors.items() if factor == scale)
        if not spans:
            known = ", ".join(str(factor) for factor in sorted(set(factors.values())))
            raise UserError(f"scale is {scale}; these stages ({_numbered(cascade)}) can enlarge by {known}")
    side = min(start[0].size)
    fitting = [(a, b) for a, b in spans if (cascade[a].low_resolution or 0) <= side]
    return fitting[-1] if fitting else spans[0]


def _each(value: Any, count: int, what: str) -> tuple[Any, ...] | None:
    """One for each picture: given so, or one for all."""
    if value is None:
        return None
    return (value,) * count if isinstance(value, Image.Image) else _exactly(value, count, what)


def _exactly(values: Sequence[Any], count: int, what: str) -> tuple[Any, ...]:
    if len(values) != count:
        raise UserError(f"{len(values)} {what} for {count} prompts; give one for each, or one for all")
    return tuple(values)


def _seeds(seeds: int | Sequence[int | Variation] | None, count: int) -> tuple[int | Variation, ...]:
    every = [seeds or 0] * count if seeds is None or isinstance(seeds, int) else list(seeds)
    for seed in _exactly(every, count, "seeds"):
        for number in seed[:2] if isinstance(seed, Variation) else (seed,):
            if number < 0:
                raise UserError(f"seed {number} is negative; seeds are whole numbers from 0")
        if isinstance(seed, Variation):
            check_number("the amount of a variation", seed.amount, least=0, most=1)
    return tuple(seed if isinstance(seed, Variation) else int(seed) for seed in every)


def _strengths(run: Sequence[StageConfig], strength: float | Sequence[float] | None) -> tuple[float, ...]:
    values = _for_stages(run, 1.0 if strength is None else strength, "strength")
    for stage, value in zip(run, values, strict=True):
        check_number(f"stage {stage.resolution}: strength", value, above=0, most=1)
    return tuple(values)


def _settings(
    run: Sequence[StageConfig], settings: Sequence[SamplingConfig] | None, overrides: dict[str, Any]
) -> tuple[SamplingConfig, ...]:
    if settings is not None and len(settings) != len(run):
        raise UserError(f"{len(settings)} settings, but {_numbered(run)} run; give one for each")
    result = list(settings) if settings is not None else [stage.sampling for stage in run]
    for name, value in overrides.items():
        if value is None:
            continue
        if name in PAIRS and not isinstance(value[0], int | float):
            value = list(value)
        for i, new in enumerate(_for_stages(run, value, name)):
            change: dict[str, Any] = {name: new}
            result[i] = dataclasses.replace(result[i], **change)
    for stage, resolved in zip(run, result, strict=True):
        resolved.check(f"stage {stage.resolution}")
        stage.schedule.check_steps(f"stage {stage.resolution}", resolved.steps)
    return tuple(result)


def _for_stages(run: Sequence[StageConfig], value: Any, name: str) -> list[Any]:
    """One value for each stage: a list of so many, or anything else for all."""
    pair = name in PAIRS and isinstance(value, tuple)
    values = list(value) if isinstance(value, list | tuple) and not pair else [value] * len(run)
    if len(values) != len(run):
        raise UserError(f"{len(values)} values of {name}, but {_numbered(run)} run; give one for each or for all")
    return values


def _tiles(run: Sequence[StageConfig], sizes: Sequence[Size], tile: Any) -> tuple[Tile | None, ...]:
    """Tiles of the stages whose pictures are larger, a base excepted."""
    result: list[Tile | None] = []
    for stage, size, side in zip(run, sizes, _for_stages(run, tile, "tile"), strict=True):
        if side is None or stage.low_resolution is None or max(size) <= side:
            result.append(None)
            continue
        stride = stage.unet.total_stride
        if stage.unet.coordinates:
            raise UserError(f"stage {stage.resolution} sees where in the picture it is: it cannot work on tiles")
        if side < 4 * stride:
            raise UserError(f"stage {stage.resolution}: tile is {side}; it must be {4 * stride} or more")
        result.append(tile_of(side, stride))
    return tuple(result)


def tile_of(side: int, stride: int) -> Tile:
    """Tiles of about this side for a network of that stride; neighbours share a quarter."""
    return Tile(side=side // stride * stride, overlap=math.ceil(side / 4 / stride) * stride)


def _numbered(stages: Sequence[StageConfig]) -> str:
    names = ", ".join(str(stage.resolution) for stage in stages)
    return f"{len(stages)} stage{'s' if len(stages) > 1 else ''} ({names})"
