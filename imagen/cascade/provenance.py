"""Write and read the provenance of an image: PNG metadata that allows it to be regenerated."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from imagen import limits
from imagen.cascade.prompts import embedding_hash, text_of
from imagen.cascade.request import Request
from imagen.diffusion.noise import Variation
from imagen.errors import UserError, check_number, check_text
from imagen.jsonconfig import from_json, to_json
from imagen.pictures import read_metadata
from imagen.precision import Precision
from imagen.stage.config import SamplingConfig
from imagen.stage.sampling import Stage
from imagen.version import __version__


def describe(request: Request, stages: Sequence[Stage], text: dict[str, Any] | None, number: int) -> dict[str, Any]:
    """Return everything that image `number` of a request depends on, up to rounding, as JSON.

    stages: the stages that run. text: the text encoder's description.
    """
    seed = request.seeds[number]
    value: dict[str, Any] = {
        "version": __version__,
        "prompt": text_of(request.prompts[number]),
        "negative": text_of(request.negatives[number]),
        "seed": seed.seed if isinstance(seed, Variation) else seed,
        "size": list(request.crop),
        "precision": request.precision,
        "text": text,
        "stages": [
            {"resolution": stage.config.resolution, "weights": stage.sha256, "sampling": _sampling_json(settings)}
            for stage, settings in zip(stages, request.settings, strict=True)
        ],
    }
    if request.lora:
        value["lora"] = [
            {"name": n, "sha256": stage.adapters[n].adapter.sha256, "weight": w, "resolution": stage.config.resolution}
            for n, w in request.lora
            for stage in stages
            if n in stage.adapters
        ]
    if request.noise != "torch":
        value["noise"] = request.noise
    for name, prompts in (("embedding", request.prompts), ("negative_embedding", request.negatives)):
        if (sha256 := embedding_hash(prompts[number])) is not None:
            value[name] = sha256
    if isinstance(seed, Variation):
        value["variation"] = {"seed": seed.other, "amount": seed.amount}
    for name in ("start", "init", "masks"):
        given = getattr(request, name)
        if given is not None:
            value[name] = digest(given[number])
    if request.init is not None:
        value["strength"] = list(request.strength)
    if any(request.tiles):
        value["tiles"] = [None if tile is None else tile.side for tile in request.tiles]
    return value


def describe_conditions(request: Request, number: int) -> dict[str, Any]:
    """Return the conditions that affect the rounding of image `number`, as JSON."""
    batch = request.batch_of(number)
    return {
        "device": request.device.type,
        "threads": torch.get_num_threads() if request.device.type == "cpu" else None,
        "batch": len(batch),
        "place": number - batch.start,  # in its batch
        "rows": [min(micro_batch, len(batch)) for micro_batch in request.micro_batch],
    }


def digest(image: Image.Image) -> str:
    """Return the sha256 of an image's pixels as RGB."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _sampling_json(settings: SamplingConfig) -> dict[str, Any]:
    """Return the settings without empty `sampler_options`, which files from before that field lack."""
    value = to_json(settings)
    if not settings.sampler_options:
        del value["sampler_options"]
    return value


@dataclass(frozen=True, kw_only=True)
class StageProvenance:
    """A stage that sampled the image."""

    resolution: int
    weights: str | None  # sha256; None: the cascade was never saved
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        self.sampling.check("sampling")


@dataclass(frozen=True, kw_only=True)
class VariationProvenance:
    """The second seed of a variation."""

    seed: int
    amount: float

    def __post_init__(self) -> None:
        limits.check(self, limits.VARIATION)


@dataclass(frozen=True, kw_only=True)
class LoraProvenance:
    """A LoRA file that was applied."""

    name: str
    sha256: str  # of its file
    weight: float
    resolution: int | None = None  # of the stage; None: in files from before this field

    def __post_init__(self) -> None:
        check_text("the name of a LoRA", self.name, 200)
        check_number("the weight of a LoRA", self.weight, **limits.LORA_WEIGHT)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions that affect an image's rounding; see `describe_conditions`."""

    device: str
    threads: int | None
    batch: int
    place: int
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        limits.check(self, limits.CONDITIONS)
        check_number("place", self.place, least=0, below=self.batch)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The provenance in an image's file, as `describe` returns it. Input images and embeddings are hashes."""

    version: str
    prompt: str
    negative: str
    seed: int
    variation: VariationProvenance | None = None
    size: tuple[int, int]  # (height, width)
    precision: Precision
    lora: tuple[LoraProvenance, ...] | None = None
    noise: Literal["philox"] | None = None  # generator of the noise; None: torch's, in files from before this field
    text: dict[str, Any] | None
    stages: tuple[StageProvenance, ...]
    embedding: str | None = None
    negative_embedding: str | None = None
    start: str | None = None
    init: str | None = None
    masks: str | None = None
    strength: tuple[float, ...] | None = None
    tiles: tuple[int | None, ...] | None = None
    conditions: Conditions

    def __post_init__(self) -> None:
        limits.check(self, limits.MADE)
        for name in ("prompt", "negative"):
            check_text(name, getattr(self, name), limits.CHARACTERS)
        check_number("the number of stages", len(self.stages), least=1, most=limits.STAGES)
        for name, values in (
            ("strength", self.strength),
            ("tiles", self.tiles),
            ("conditions.rows", self.conditions.rows),
        ):
            if values is not None and len(values) != len(self.stages):
                raise UserError(f"{name} has {len(values)} values, but there are {len(self.stages)} stages")
        pixels = self.conditions.batch * self.size[0] * self.size[1]
        check_number("the number of pixels of its batch", pixels, most=limits.PIXELS)


def read_provenance(picture: str | Path) -> Provenance:
    """Read the provenance of an image file.

    The file is untrusted, so all types and bounds are checked here. Raises UserError, naming the file, the field, its
    value and the values allowed.
    """
    found = read_metadata(picture)
    if found is None:
        raise UserError(f"{picture} has no imagen metadata, so it cannot be regenerated")
    if "contact_sheet" in found:
        raise UserError(f"{picture} is a contact sheet; give one of its images")
    return from_json(Provenance, found, str(picture))
