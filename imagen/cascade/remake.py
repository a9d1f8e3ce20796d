"""A picture again, from what its file says.

The file is somebody's: what it says is read as `Made`, of which every type and every bound is checked before a thread
is started, a batch is filled or a prompt is encoded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from imagen import limits
from imagen.cascade.cascade import Cascade, digest
from imagen.cascade.plan import Plan
from imagen.diffusion.noise import Variation
from imagen.errors import UserError, check_number, check_text
from imagen.jsonconfig import from_json
from imagen.pictures import read_metadata
from imagen.precision import Precision
from imagen.stage.config import SamplingConfig

GIVEN = {"start": "the picture that it enlarges", "init": "its init picture", "masks": "its mask"}


@dataclass(frozen=True, kw_only=True)
class MadeStage:
    """A stage that the picture went through."""

    resolution: int
    weights: str | None  # sha256; None: of a cascade that was never saved
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        self.sampling.check("sampling")


@dataclass(frozen=True, kw_only=True)
class MadeVariation:
    seed: int
    amount: float

    def __post_init__(self) -> None:
        limits.check(self, limits.VARIATION)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """On what else the last bits of a picture depend; see `Cascade.conditions`."""

    device: str
    threads: int | None
    batch: int
    place: int
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        limits.check(self, limits.CONDITIONS)
        check_number("place", self.place, least=0, below=self.batch)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What `Cascade.metadata` writes, and `Cascade.conditions`. Pictures that went into it are hashes."""

    version: str
    prompt: str
    negative: str
    seed: int
    variation: MadeVariation | None = None
    size: tuple[int, int]  # (height, width)
    precision: Precision
    noise: Literal["philox"] | None = None  # its generator; None: those of torch, as before files named one
    text: dict[str, Any] | None
    stages: tuple[MadeStage, ...]
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
                raise UserError(f"{name} has {len(values)} values, but it went through {len(self.stages)} stages")
        pixels = self.conditions.batch * self.size[0] * self.size[1]
        check_number("the number of pixels of its batch", pixels, most=limits.PIXELS)


def read_made(picture: str | Path) -> Made:
    """Read how the picture in a file was made.

    Raises UserError, naming the file, the field, its value and what it may be, if it does not say so, or asks for what
    no picture was made with.
    """
    found = read_metadata(picture)
    if found is None:
        raise UserError(f"{picture} says nothing of how it was made")
    return from_json(Made, found, str(picture))


def plan_again(
    cascade: Cascade,
    picture: str | Path,
    *,
    start: Image.Image | None = None,
    init: Image.Image | None = None,
    mask: Image.Image | None = None,
    device: torch.device | str | None = None,
) -> tuple[Plan, int]:
    """The plan that makes the picture in a file again, and the number of the picture in it.

    Bit for bit on the same kind of device, with the same release of torch: the batch is filled with copies, since
    the last bits of a network's answer depend on the size of its batch, and threads are set to as many as there were.
    start, init, mask: pictures that went into it, since a file holds only their hashes.

    Raises UserError if the file does not say how it was made, or was made by other weights or from other pictures.
    """
    made, where = read_made(picture), str(picture)
    given = {"start": start, "init": init, "masks": mask}
    _check_given(made, where, given)
    first = _first_stage(cascade, made, where)
    if cascade.texts is not None and made.text != cascade.texts.describe():
        raise UserError(f"{where} was made with another text encoder, {made.text}")

    last, count = first + len(made.stages) - 1, made.conditions.batch
    variation = made.variation
    seed = made.seed if variation is None else Variation(made.seed, variation.seed, variation.amount)
    request: dict[str, Any] = {
        "negative": made.negative,
        "seeds": [seed] * count,
        "init": init,
        "mask": mask,
        "strength": made.strength,
        "tile": made.tiles,
        "stages": last + 1,
        "settings": [stage.sampling for stage in made.stages],
        "rows": made.conditions.rows,
        "noise": made.noise or "torch",
    }
    if start is None:
        request["size"] = made.size
    else:
        request["start"] = [start] * count
        request["scale"] = cascade.stages[last].config.resolution // (cascade.stages[first].config.low_resolution or 1)
    plan = cascade.plan([made.prompt] * count, batch_size=count, device=device, precision=made.precision, **request)
    if made.conditions.threads is not None:
        torch.set_num_threads(made.conditions.threads)
    return plan, made.conditions.place


def _check_given(made: Made, where: str, given: dict[str, Image.Image | None]) -> None:
    """The pictures that went into it, and no others."""
    for name, what in GIVEN.items():
        image, wanted = given[name], getattr(made, name)
        if (image is None) != (wanted is None):
            raise UserError(f"{where}: {'give ' + what if image is None else 'it was made without ' + what[4:]}")
        if image is not None and digest(image) != wanted:
            raise UserError(f"{where}: that is not {what}: its pixels are others")


def _first_stage(cascade: Cascade, made: Made, where: str) -> int:
    """The index in the cascade of the first stage that made it."""
    hashes = [stage.weights for stage in made.stages]
    ours = [stage.sha256 for stage in cascade.stages]
    for first in range(len(ours)):
        if ours[first : first + len(hashes)] == hashes:
            return first
    names = ", ".join(f"{stage.resolution} {str(stage.weights)[:12]}" for stage in made.stages)
    raise UserError(f"{where} was made by other weights than those of this cascade: {names}")
