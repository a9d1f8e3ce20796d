"""What may be asked of a server: the fields of a request, and the plans that they make."""

import secrets
import shlex
from dataclasses import dataclass
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from imagen.cascade import Cascade, Plan, Variation
from imagen.diffusion.samplers import Spacing
from imagen.errors import UserError, check_text
from imagen.limits import SEED
from imagen.serve.config import ServeConfig
from imagen.serve.pictures import Format, TooLarge
from imagen.stage.config import Sampler

Each = Annotated[list[float], Field(max_length=32)] | float
EachWhole = Annotated[list[int], Field(max_length=32)] | int
RANDOM = 2**31  # seeds that are drawn are below: short enough to read out to somebody


class Refused(UserError):
    """By the operator's own check; 403."""


class VariationOf(BaseModel):
    """Noise near that of another seed."""

    model_config = ConfigDict(extra="forbid")
    seed: int = Field(ge=0, le=SEED, description="the seed of the picture to vary")
    amount: float = Field(default=0.3, ge=0, le=1, description="0: the same picture; 1: another")


class Asked(BaseModel):
    """Everything that sampling can do; fields that are left out are the cascade's own defaults."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    prompt: str = Field(default="", description="what to draw; empty: whatever comes")
    negative: str = Field(default="", description="what guidance leads away from")
    n: int = Field(default=1, ge=1, description="pictures, of the seeds seed, seed + 1, ...")
    seed: int | None = Field(default=None, ge=0, le=SEED, description="of the first picture; left out: drawn")
    variation: VariationOf | None = None
    size: str | None = Field(default=None, max_length=20, description="WIDTHxHEIGHT in pixels, or auto")
    stages: int | None = Field(default=None, description="stop after so many; left out: as the size asks")
    scale: int | None = Field(default=None, description="with start: enlarge by this")
    steps: EachWhole | None = Field(default=None, description="of the sampler, for all stages or for each")
    guidance: Each | None = Field(default=None, description="weight; 1 is none")
    guidance_interval: list[float] | None = Field(default=None, max_length=2, description="log-SNRs in which it acts")
    guidance_rescale: Each | None = None
    low_res_noise: Each | None = Field(default=None, description="conditioning noise, 0 to 1")
    sampler: Sampler | None = None
    spacing: Spacing | None = None
    damping: Each | None = None
    strength: Each | None = Field(default=None, description="share of the steps that are taken from init")
    lora: dict[str, float] | None = Field(default=None, max_length=16, description="weight of each LoRA, by its name")
    tile: int | None = Field(default=None, ge=1, le=65_536, description="enlarge in pieces of this side")
    init: str | None = Field(default=None, description="base64 of a picture to begin with")
    mask: str | None = Field(default=None, description="base64: white, or transparent, is drawn anew")
    start: str | None = Field(default=None, description="base64 of a small picture to enlarge")
    output_format: Format = "png"
    quality: int | None = Field(default=None, ge=1, le=100, description="of jpeg and webp")


@dataclass(frozen=True, kw_only=True)
class Given:
    """Pictures of a request, decoded."""

    init: Image.Image | None = None
    mask: Image.Image | None = None
    start: Image.Image | None = None


SETTINGS = (
    *("steps", "guidance", "guidance_rescale", "low_res_noise", "sampler", "spacing", "damping", "strength"),
    "tile",
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that can be carried out."""

    plans: tuple[Plan, ...]  # of one picture each
    commands: tuple[str, ...]  # that make the same pictures; "" where the file alone can (`imagen sample --from`)
    format: Format
    quality: int | None
    given_bytes: int  # of the pictures that it brought along


def prepare(asked: Asked, given: Given, cascade: Cascade, config: ServeConfig, device: Any) -> Prepared:
    """Check a request against the server's limits and the cascade, and plan it picture by picture.

    Raises UserError; TooLarge, one of them, for what exceeds a size.
    """
    limits = config.limits
    for name, text in (("prompt", asked.prompt), ("negative", asked.negative)):
        if len(text) > limits.prompt:
            raise UserError(f"{name} has {len(text):,} characters; at most {limits.prompt:,} are taken")
        check_text(name, text)
    if asked.n > limits.n:
        raise UserError(f"n is {asked.n:,}; one request makes at most {limits.n}")
    steps = asked.steps if isinstance(asked.steps, list) else [asked.steps]
    if any(each is not None and each > limits.steps for each in steps):
        raise UserError(f"steps is {max(each or 0 for each in steps):,}; at most {limits.steps} are taken")
    for text in (asked.prompt, asked.negative):  # guidance of 0 or less draws what is negative
        if config.check_prompt is not None and text and (refusal := config.check_prompt(text)):
            raise Refused(str(refusal))

    stages, size = asked.stages, None
    if given.start is None and asked.scale is not None:
        raise UserError("scale says how much a start picture is enlarged; give one")
    if given.start is not None and asked.size not in (None, "auto"):
        raise UserError("size follows from the picture to enlarge; leave it out")
    if asked.size not in (None, "auto"):
        width, height = sides(str(asked.size), limits.side)
        stages = stages_for(cascade, height, width) if stages is None else stages
        trained = cascade.stages[max(min(stages, len(cascade.stages)), 1) - 1].config.resolution
        size = None if (height, width) == (trained, trained) else (height, width)
    seed = secrets.randbelow(RANDOM) if asked.seed is None else asked.seed
    if seed + asked.n - 1 > SEED:
        raise UserError(f"seed is {seed}; with {asked.n} pictures it may be at most {SEED - asked.n + 1}")
    request: dict[str, Any] = {name: getattr(asked, name) for name in SETTINGS}
    if asked.guidance_interval is not None:
        if len(asked.guidance_interval) != 2:
            raise UserError("guidance_interval has two numbers, the lower log-SNR and the upper")
        request["guidance_interval"] = tuple(asked.guidance_interval)
    vary = asked.variation
    plans = tuple(
        cascade.plan(
            [asked.prompt],
            negative=asked.negative,
            seeds=[seed + j if vary is None else Variation(vary.seed, seed + j, vary.amount)],
            init=given.init,
            mask=given.mask,
            start=None if given.start is None else [given.start],
            stages=stages,
            scale=asked.scale,
            size=size,
            batch_size=1,
            device=device,
            lora=asked.lora,
            **request,
        )
        for j in range(asked.n)
    )
    largest = max(plans[0].sizes, key=lambda sides: sides[0] * sides[1])
    if largest[0] * largest[1] > limits.pixels:
        raise TooLarge(
            f"the result would have {largest[1]}x{largest[0]} pixels; at most {limits.pixels:,} are made at a time"
        )
    commands = tuple(_command(asked, given, plan, config.cascade) for plan in plans)
    pictures = (image for image in (given.init, given.mask, given.start) if image is not None)
    held = sum(image.width * image.height * len(image.getbands()) for image in pictures)
    return Prepared(plans=plans, commands=commands, format=asked.output_format, quality=asked.quality, given_bytes=held)


def sides(text: str, most: int) -> tuple[int, int]:
    """Width and height of "WIDTHxHEIGHT". Raises UserError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
        raise UserError(f"size is {text!r}; it must be WIDTHxHEIGHT, as 256x256, or auto")
    width, height = (int(part) for part in parts)
    if not (0 < width <= most and 0 < height <= most):
        raise TooLarge(f"size is {text}; sides are 1 to {most:,} pixels")
    return width, height


def stages_for(cascade: Cascade, height: int, width: int) -> int:
    """After how many stages a picture has about this size: those whose resolution is nearest to the shorter side."""
    resolutions = [stage.config.resolution for stage in cascade.stages]
    return min(range(len(resolutions)), key=lambda i: abs(resolutions[i] - min(height, width))) + 1


def _command(asked: Asked, given: Given, plan: Plan, cascade: str) -> str:
    """`imagen sample ...` for one picture of a request."""
    seed = plan.seeds[0]
    if isinstance(seed, Variation) or asked.prompt.startswith("-"):  # which would look like an option
        return ""
    if given.start is not None:
        words = ["imagen", "upscale", cascade, "picture.png", "--prompt", asked.prompt]
        words += [] if asked.scale is None else ["--scale", str(asked.scale)]
    else:
        words = ["imagen", "sample", cascade, f"--stages={len(plan.settings)}"]
        if plan.init is None and plan.crop[0] != plan.crop[1]:
            words += ["--size", *map(str, plan.crop)]
    words.append(f"--seed={seed}")
    if asked.negative:
        words.append(f"--negative={asked.negative}")
    for name in SETTINGS:
        value = getattr(asked, name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')}={text}")
    if asked.guidance_interval is not None:
        words.append("--guidance-interval=" + ":".join(map(str, asked.guidance_interval)))
    words += [f"--lora={name}.safetensors:{weight:g}" for name, weight in (asked.lora or {}).items()]
    words += ["--init=picture.png"] if given.init is not None else []
    words += ["--mask=mask.png"] if given.mask is not None else []
    words += ["--out", "pictures"]
    return shlex.join(words if given.start is not None else [*words, asked.prompt])
