"""A request to a cascade: every default filled in, and every mistake found before anything is computed."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from typing_extensions import Unpack

from imagen import limits
from imagen.cascade.options import PerImage, PerStage, Prompt, RequestOptions, SamplingOptions, Size
from imagen.cascade.prompts import as_prompts
from imagen.cascade.sizes import sizes_above, sizes_for, sizes_like
from imagen.devices import default_device
from imagen.diffusion.noise import NoiseKind, Variation
from imagen.errors import UserError, check_number, quoted
from imagen.hints import hint
from imagen.precision import Precision, autocast_dtype, precision_name
from imagen.stage.config import SamplingConfig, StageConfig
from imagen.stage.tiles import Tile

FIELDS = tuple(field.name for field in dataclasses.fields(SamplingConfig))
PAIRS = ("guidance_interval", "logsnr_range")  # fields whose one value is two numbers


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `Cascade.run` will do. Tuples have one entry per image, or one per stage that runs."""

    prompts: tuple[Prompt, ...]  # "" is the unconditional model; tensors are embeddings, float32 [L, D]
    negatives: tuple[Prompt, ...]  # what guidance leads away from; "" is the unconditional model
    seeds: tuple[int | Variation, ...]
    start: tuple[Image.Image, ...] | None  # images that the first stage upsamples; None: it generates them
    start_size: Size | None  # of those, padded to what the stages can take
    init: tuple[Image.Image, ...] | None  # images that every stage begins with, or keeps a part of
    masks: tuple[Image.Image, ...] | None  # white is regenerated
    first_stage: int  # index in the cascade of the first stage that runs
    settings: tuple[SamplingConfig, ...]
    strength: tuple[float, ...]  # share of the steps that are taken from init; 1 without
    sizes: tuple[Size, ...]  # (height, width) of each stage's result
    crop: Size  # of the result
    tiles: tuple[Tile | None, ...]
    batch_size: int  # images that go through the stages together
    micro_batch: tuple[int, ...]  # images per network evaluation, at most batch_size
    device: torch.device
    precision: Precision  # never "auto"
    lora: tuple[tuple[str, float], ...] = ()  # (name, weight)
    noise: NoiseKind = "philox"  # the random numbers' generator
    vram: float | None = None  # GiB of device memory that this fits in, see `imagen.cascade.memory`
    offload: bool = False  # stages are on the device only while they run

    def batches(self) -> list[range]:
        """Return the images in the groups in which they are computed, on any number of ranks."""
        count, size = len(self.prompts), self.batch_size
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def __repr__(self) -> str:
        count, (height, width) = len(self.prompts), self.crop
        first = quoted(self.prompts[0]) if isinstance(self.prompts[0], str) else "an embedding"
        prompts = first if count == 1 else f"{first} and {count - 1} more"
        stages = ", ".join(
            f"{size[1]}x{size[0]} in {settings.steps} steps of {settings.sampler}, guidance {settings.guidance:g}"
            for size, settings in zip(self.sizes, self.settings, strict=True)
        )
        images = "1 image" if count == 1 else f"{count} images"
        return f"<Request: {images} of {width}x{height} for {prompts}; {stages}; {self.device}, {self.precision}>"


def make_request(
    cascade: Sequence[StageConfig],
    prompts: Prompt | Sequence[Prompt],
    *,
    negative: PerImage[Prompt] = "",
    seeds: PerImage[int | Variation] | None = None,
    start: PerImage[Image.Image] | None = None,
    init: PerImage[Image.Image] | None = None,
    mask: PerImage[Image.Image] | None = None,
    strength: PerStage[float] | None = None,
    stages: int | None = None,
    scale: int | None = None,
    settings: Sequence[SamplingConfig] | None = None,
    size: Size | None = None,
    tile: PerStage[int | None] | None = None,
    batch_size: int = 8,
    micro_batch: PerStage[int] | None = None,
    vram: float | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    lora: Mapping[str, float] | None = None,
    noise: NoiseKind = "philox",
    **sampling: Unpack[SamplingOptions],
) -> Request:
    """Fill in defaults and check; `imagen.cascade.options` describes the arguments. Raises UserError.

    A bound on memory (`vram`) is noted, not applied: see `imagen.cascade.memory.fit_to_memory`.
    """
    for name in sampling:
        if name not in FIELDS:
            raise TypeError(
                f"sampling has no setting {name!r}{hint(name, (*RequestOptions.__annotations__, 'prompts'))}"
            )
    prompts = as_prompts(prompts)
    count = len(prompts)
    if not count:
        raise UserError("no prompts: give at least one (an empty string makes a picture without a prompt)")
    negatives = as_prompts(negative)
    if isinstance(negative, str | torch.Tensor) and len(negatives) == 1:
        negatives *= count
    _exactly(negatives, count, "negative prompts")
    check_count(stages, cascade)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
    if vram is not None:
        check_number("vram", vram, above=0)
    start = None if start is None else [start] * count if isinstance(start, Image.Image) else list(start)
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
    return Request(
        prompts=prompts,
        negatives=negatives,
        seeds=_seeds(seeds, count),
        start=None if start is None else tuple(start),
        start_size=start_size,
        init=inits,
        masks=masks,
        first_stage=first,
        settings=_settings(run, settings, dict(sampling)),
        strength=_strengths(run, strength),
        sizes=sizes,
        crop=crop,
        tiles=_tiles(run, sizes, tile),
        batch_size=batch_size,
        micro_batch=_micro_batches(run, batch_size, micro_batch),
        device=device,
        precision=precision_name(autocast_dtype(device, precision)),
        lora=_lora(lora or {}),
        noise=noise,
        vram=vram,
    )


def _lora(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    for name, weight in weights.items():
        check_number(f"the weight of LoRA {name}", weight, **limits.LORA_WEIGHT)
    return tuple((name, float(weight)) for name, weight in weights.items() if weight)


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


def _seeds(seeds: PerImage[int | Variation] | None, count: int) -> tuple[int | Variation, ...]:
    if seeds is None or isinstance(seeds, int | Variation):
        seeds = [seeds or 0] * count
    every = list(seeds)
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


def _micro_batches(run: Sequence[StageConfig], batch_size: int, given: PerStage[int] | None) -> tuple[int, ...]:
    values = _for_stages(run, batch_size if given is None else given, "micro_batch")
    for value in values:
        check_number("micro_batch", value, least=1)
    return tuple(min(value, batch_size) for value in values)


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
