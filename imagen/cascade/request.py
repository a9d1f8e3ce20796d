"""Fill in the defaults of a request to a cascade, and check it before anything is computed."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from PIL import Image
from typing_extensions import Unpack

from imagen import limits
from imagen.cascade.lazy_images import LazyImages
from imagen.cascade.options import PerImage, PerStage, Prompt, RequestOptions, SamplingOptions, Size
from imagen.cascade.per_stage import (
    name_stages,
    resolve_micro_batches,
    resolve_settings,
    resolve_strengths,
    resolve_tiles,
)
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


@dataclass(frozen=True, kw_only=True)
class Request:
    """All arguments of a sampling job. Tuples have one entry per image, or one per stage that runs."""

    prompts: tuple[Prompt, ...]  # "" is the unconditional model; tensors are embeddings, float32 [L, D]
    negatives: tuple[Prompt, ...]  # negative prompts; "" is the unconditional model
    seeds: tuple[int | Variation, ...]
    start: Sequence[Image.Image] | None  # images that the first stage upsamples; None: it generates them
    start_size: Size | None  # their size after padding to multiples that the stages accept
    init: tuple[Image.Image, ...] | None  # input images of image-to-image and inpainting, for every stage
    masks: tuple[Image.Image, ...] | None  # white is regenerated
    first_stage: int  # index in the cascade of the first stage that runs
    settings: tuple[SamplingConfig, ...]
    strength: tuple[float, ...]  # share of the steps that are taken from init; 1 without init
    sizes: tuple[Size, ...]  # (height, width) of each stage's result
    crop: Size  # of the result
    tiles: tuple[Tile | None, ...]
    batch_size: int  # images that go through the stages together
    micro_batch: tuple[int, ...]  # images per network evaluation, at most batch_size
    device: torch.device
    precision: Precision  # never "auto"
    lora: tuple[tuple[str, float], ...] = ()  # (name, weight)
    noise: NoiseKind = "philox"  # generator of the noise
    vram: float | None = None  # bound of device memory in GiB, see `imagen.cascade.memory`
    offload: bool = False  # stages are on the device only while they run

    def batches(self) -> list[range]:
        """Return the image numbers of each batch, which do not depend on the number of ranks."""
        return [self.batch_of(begin) for begin in range(0, len(self.prompts), self.batch_size)]

    def batch_of(self, number: int) -> range:
        """Return the numbers of the images in the batch of image `number`."""
        begin = number - number % self.batch_size
        return range(begin, min(begin + self.batch_size, len(self.prompts)))

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
    """Return a request with all defaults filled in; `imagen.cascade.options` describes the arguments.

    Stores the bound on memory (`vram`) without applying it: see `imagen.cascade.memory.fit_to_memory`.
    Raises UserError for invalid arguments.
    """
    for name in sampling:
        if name not in FIELDS:
            raise TypeError(
                f"sampling has no setting {name!r}{hint(name, (*RequestOptions.__annotations__, 'prompts'))}"
            )
    prompts = as_prompts(prompts)
    count = len(prompts)
    if not count:
        raise UserError("no prompts: give at least one (an empty string samples the unconditional model)")
    negatives = as_prompts(negative)
    if isinstance(negative, str | torch.Tensor) and len(negatives) == 1:
        negatives *= count
    _exactly(negatives, count, "negative prompts")
    check_count(stages, cascade)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
    if vram is not None:
        check_number("vram", vram, above=0)
    if noise not in get_args(NoiseKind):
        raise UserError(f"unknown noise {noise!r}: choose {', '.join(get_args(NoiseKind))}")
    if start is not None and not isinstance(start, LazyImages):
        start = (start,) * count if isinstance(start, Image.Image) else tuple(start)
    last = (stages or len(cascade)) - 1
    first, last = (0, last) if start is None else _upsampling_stages(cascade[: last + 1], start, scale)
    run = cascade[first : last + 1]
    _check_given(run, count, start=start, init=init, mask=mask, strength=strength, size=size)

    inits, masks = _each(init, count, "init images"), _each(mask, count, "masks")
    start_size: Size | None = None
    if start is not None:
        width, height = _size(start)
        start_size, sizes, crop = sizes_above(run, (height, width))
    else:
        sizes = sizes_for(run, size) if size or inits is None else sizes_like(run, (inits[0].height, inits[0].width))
        crop = sizes[-1]
    device = torch.device(device or default_device())
    return Request(
        prompts=prompts,
        negatives=negatives,
        seeds=_seeds(seeds, count),
        start=start,
        start_size=start_size,
        init=inits,
        masks=masks,
        first_stage=first,
        settings=resolve_settings(run, settings, dict(sampling)),
        strength=resolve_strengths(run, strength, whole=inits is not None and masks is None),
        sizes=sizes,
        crop=crop,
        tiles=resolve_tiles(run, sizes, tile),
        batch_size=batch_size,
        micro_batch=resolve_micro_batches(run, batch_size, micro_batch),
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
        raise UserError(f"stages is {stages}; this cascade has {name_stages(cascade)}, so choose 1 to {len(cascade)}")


def _check_given(run: Sequence[StageConfig], count: int, **given: Any) -> None:
    """Raise UserError unless the arguments are compatible."""
    start, init = given["start"], given["init"]
    if start is None and run[0].low_resolution is not None:
        low = run[0].low_resolution
        raise UserError(
            f"this cascade has no base stage: it upsamples {low}x{low} images, so give images to start from"
        )
    if start is not None:
        if len(start) != count:
            raise UserError(f"{len(start)} images to start from but {count} prompts; give one prompt per image")
        if given["size"] is not None:
            raise UserError("size follows from the images to start from; leave it out")
        if init is not None:
            raise UserError("images to start from are upsampled, init images are regenerated; give one of the two")
    if init is None and (given["mask"] is not None or given["strength"] is not None):
        name = "mask" if given["mask"] is not None else "strength"
        raise UserError(f"{name} applies to an init image; give one")


def _upsampling_stages(
    cascade: Sequence[StageConfig], start: Sequence[Image.Image], scale: int | None
) -> tuple[int, int]:
    """Return the indices of the first and the last stage that upsample images.

    The first is the stage with the largest low resolution that does not exceed the images' shorter side, the last is
    the end of the cascade. With `scale`, considers only runs of stages that upsample by this factor.
    """
    upsampling = [index for index, stage in enumerate(cascade) if stage.low_resolution is not None]
    if not upsampling:
        raise UserError(f"no super-resolution stage among the {name_stages(cascade)} requested")
    spans = [(a, len(cascade) - 1) for a in upsampling]
    if scale is not None:
        factors = {
            (a, b): cascade[b].resolution // (cascade[a].low_resolution or 1)
            for a, b in itertools.combinations_with_replacement(upsampling, 2)
        }
        spans = sorted(span for span, factor in factors.items() if factor == scale)
        if not spans:
            known = ", ".join(str(factor) for factor in sorted(set(factors.values())))
            raise UserError(f"scale is {scale}; these stages ({name_stages(cascade)}) can upsample by {known}")
    side = min(_size(start))
    fitting = [(a, b) for a, b in spans if (cascade[a].low_resolution or 0) <= side]
    return fitting[-1] if fitting else spans[0]


def _size(start: Sequence[Image.Image]) -> tuple[int, int]:
    """Return the width and height of all images. Raises UserError if they differ."""
    if isinstance(start, LazyImages):
        return start.size
    if len({image.size for image in start}) > 1:
        raise UserError("the images to start from differ in size; upsample those of each size separately")
    return start[0].size


def _each(value: Any, count: int, what: str) -> tuple[Any, ...] | None:
    """Return one value per image, from one for all or one for each."""
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
