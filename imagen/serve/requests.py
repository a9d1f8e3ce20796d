"""Define the fields of the HTTP API's requests, and convert them to requests of the cascade."""

import math
import secrets
import shlex
from dataclasses import dataclass
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from imagen.cascade import Cascade, Request, Variation
from imagen.diffusion.samplers import Spacing, sampler_names
from imagen.errors import UserError, check_text
from imagen.limits import SEED
from imagen.serve.config import ServeConfig
from imagen.serve.pictures import Format, TooLarge

Each = Annotated[list[float], Field(max_length=32)] | float
EachWhole = Annotated[list[int], Field(max_length=32)] | int
LoraName = Annotated[str, Field(max_length=200)]
RANDOM = 2**31  # upper bound of random seeds, so that they are short enough to copy by hand


class RejectedPrompt(UserError):
    """Raised for a prompt that the operator's `check_prompt` rejects; status 403."""


class VariationOf(BaseModel):
    """Start from noise near that of another seed."""

    model_config = ConfigDict(extra="forbid")
    seed: int = Field(ge=0, le=SEED, description="seed of the image to vary")
    amount: float = Field(default=0.3, ge=0, le=1, description="0: the same image; 1: an unrelated one")


class ImageRequest(BaseModel):
    """All sampling options; omitted fields take the cascade's defaults."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: str = Field(default="", description="text of the image; empty: unconditional")
    negative: str = Field(default="", description="negative prompt, which guidance moves away from")
    n: int = Field(default=1, ge=1, description="number of images, with seeds seed, seed + 1, ...")
    seed: int | None = Field(default=None, ge=0, le=SEED, description="seed of the first image; default: random")
    variation: VariationOf | None = None
    size: str | None = Field(default=None, max_length=20, description="WIDTHxHEIGHT in pixels, or auto")
    stages: int | None = Field(default=None, description="number of stages to run; default: chosen by size")
    scale: int | None = Field(default=None, description="upscaling factor, with start")
    fast: bool = Field(default=False, description="sample in few steps, if the cascade has settings for it")
    steps: EachWhole | None = Field(default=None, description="sampler steps, for all stages or per stage")
    guidance: Each | None = Field(default=None, description="guidance scale; 1: none")
    guidance_interval: list[float] | None = Field(default=None, max_length=2, description="log-SNR range of guidance")
    guidance_rescale: Each | None = Field(default=None, description="rescaling of guided estimates, 0 to 1")
    low_res_noise: Each | None = Field(default=None, description="conditioning augmentation, 0 to 1")
    sampler: str | None = Field(default=None, max_length=100, description=f"one of {', '.join(sampler_names())}")
    spacing: Spacing | None = None
    damping: Each | None = None
    strength: Each | None = Field(default=None, description="share of the steps to take from init, 0 to 1")
    lora: dict[LoraName, float] | None = Field(default=None, max_length=16, description="weight of each LoRA by name")
    tile: int | None = Field(default=None, ge=1, le=65_536, description="side of the tiles, in pixels")
    init: str | None = Field(default=None, description="base64 of an image for image-to-image")
    mask: str | None = Field(default=None, description="base64: white or transparent is inpainted")
    start: str | None = Field(default=None, description="base64 of a small image to upscale")
    output_format: Format = "png"
    quality: int | None = Field(default=None, ge=1, le=100, description="of JPEG and WebP")


@dataclass(frozen=True, kw_only=True)
class InputImages:
    """The decoded images of a request."""

    init: Image.Image | None = None
    mask: Image.Image | None = None
    start: Image.Image | None = None


SETTINGS = (
    *("steps", "guidance", "guidance_rescale", "low_res_noise", "sampler", "spacing", "damping", "strength"),
    "tile",
)


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A checked request."""

    requests: tuple[Request, ...]  # one for each image
    commands: tuple[str, ...]  # that make the same images; "" where only `imagen sample --from FILE` can
    format: Format
    quality: int | None
    input_bytes: int  # of the decoded input images


def prepare(
    fields: ImageRequest, inputs: InputImages, cascade: Cascade, config: ServeConfig, device: Any
) -> PreparedRequest:
    """Check a request against the server's limits and the cascade, and split it into one request for each image.

    Raises UserError: TooLarge for a size above a limit, RejectedPrompt for a prompt that the operator rejects.
    """
    limits = config.limits
    for name, text in (("prompt", fields.prompt), ("negative", fields.negative)):
        if len(text) > limits.prompt:
            raise UserError(f"{name} has {len(text):,} characters; the limit is {limits.prompt:,}")
        check_text(name, text)
    if fields.n > limits.n:
        raise UserError(f"n is {fields.n:,}; the limit of a request is {limits.n}")
    steps = fields.steps if isinstance(fields.steps, list) else [fields.steps]
    if any(each is not None and each > limits.steps for each in steps):
        raise UserError(f"steps is {max(each or 0 for each in steps):,}; the limit is {limits.steps}")
    for text in (fields.prompt, fields.negative):  # guidance of 0 or less samples the negative prompt
        if config.check_prompt is not None and text and (refusal := config.check_prompt(text)):
            raise RejectedPrompt(str(refusal))

    stages, size = fields.stages, None
    if inputs.start is None and fields.scale is not None:
        raise UserError("scale is the factor by which a start image is upscaled; add start, or leave scale out")
    if inputs.start is not None and fields.size not in (None, "auto"):
        raise UserError("size follows from the start image and scale; leave it out")
    if fields.size not in (None, "auto"):
        width, height = parse_size(str(fields.size), limits.side)
        stages = stages_for(cascade, height, width) if stages is None else stages
        trained = cascade.stages[max(min(stages, len(cascade.stages)), 1) - 1].config.resolution
        size = None if (height, width) == (trained, trained) else (height, width)
    seed = secrets.randbelow(RANDOM) if fields.seed is None else fields.seed
    if seed + fields.n - 1 > SEED:
        raise UserError(f"seed is {seed}; with {fields.n} images it may be at most {SEED - fields.n + 1}")
    options: dict[str, Any] = {name: getattr(fields, name) for name in SETTINGS}
    if fields.guidance_interval is not None:
        if len(fields.guidance_interval) != 2:
            raise UserError("guidance_interval must have two numbers, the lower and the upper log-SNR")
        options["guidance_interval"] = tuple(fields.guidance_interval)
    vary = fields.variation
    requests = tuple(
        cascade.request(
            [fields.prompt],
            negative=fields.negative,
            seeds=[seed + j if vary is None else Variation(vary.seed, seed + j, vary.amount)],
            init=inputs.init,
            mask=inputs.mask,
            start=None if inputs.start is None else [inputs.start],
            stages=stages,
            scale=fields.scale,
            size=size,
            batch_size=1,
            device=device,
            lora=fields.lora,
            fast=fields.fast,
            **options,
        )
        for j in range(fields.n)
    )
    height, width = max(requests[0].sizes, key=math.prod)
    if height * width > limits.pixels:
        raise TooLarge(f"the image would have {width}x{height} pixels; the limit is {limits.pixels:,}")
    commands = tuple(_command(fields, inputs, request, config.cascade, size) for request in requests)
    images = (image for image in (inputs.init, inputs.mask, inputs.start) if image is not None)
    return PreparedRequest(
        requests=requests,
        commands=commands,
        format=fields.output_format,
        quality=fields.quality,
        input_bytes=sum(image.width * image.height * len(image.getbands()) for image in images),
    )


def parse_size(text: str, max_side: int) -> tuple[int, int]:
    """Return width and height of "WIDTHxHEIGHT". Raises UserError, TooLarge for a side above `max_side`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
        raise UserError(f"size is {text!r}; it must be WIDTHxHEIGHT, such as 256x256, or auto")
    width, height = (int(part) for part in parts)
    if not (0 < width <= max_side and 0 < height <= max_side):
        raise TooLarge(f"size is {text}; sides must be 1 to {max_side:,} pixels")
    return width, height


def stages_for(cascade: Cascade, height: int, width: int) -> int:
    """Return the number of stages after which the resolution is nearest to the image's shorter side."""
    resolutions = [stage.config.resolution for stage in cascade.stages]
    return min(range(len(resolutions)), key=lambda i: abs(resolutions[i] - min(height, width))) + 1


def _command(
    fields: ImageRequest, inputs: InputImages, request: Request, cascade: str, size: tuple[int, int] | None
) -> str:
    """Return the command line that makes one image of a request; "" if there is none.

    size: height and width of the result, if they were given and are not those of the stage.
    """
    seed = request.seeds[0]
    if isinstance(seed, Variation) or fields.prompt.startswith("-"):  # such a prompt would be parsed as an option
        return ""
    if inputs.start is not None:
        if fields.negative:  # `imagen upscale` takes no negative prompt
            return ""
        words = ["imagen", "upscale", cascade, "picture.png", "--prompt", fields.prompt]
        words += [] if fields.scale is None else ["--scale", str(fields.scale)]
        words += [] if fields.stages is None else [f"--stages={fields.stages}"]
    else:
        words = ["imagen", "sample", cascade, f"--stages={len(request.settings)}"]
        words += [] if size is None else ["--size", *map(str, size)]
    words.append(f"--seed={seed}")
    if fields.negative:
        words.append(f"--negative={fields.negative}")
    for name in SETTINGS:
        value = getattr(fields, name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')}={text}")
    if fields.guidance_interval is not None:
        words.append("--guidance-interval=" + ":".join(map(str, fields.guidance_interval)))
    words += ["--fast"] if fields.fast else []
    words += [f"--lora={name}.safetensors:{weight:g}" for name, weight in (fields.lora or {}).items()]
    words += ["--init=picture.png"] if inputs.init is not None else []
    words += ["--mask=mask.png"] if inputs.mask is not None else []
    words += ["--out", "pictures"]
    return shlex.join(words if inputs.start is not None else [*words, fields.prompt])
