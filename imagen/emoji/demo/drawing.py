"""Sample images of held-out prompts, and score whether they match."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Cascade, Stage
from imagen.emoji.alignment import PromptScore, score_image
from imagen.emoji.colour import background_colour
from imagen.emoji.dataset import HeldoutPrompt, compose, heldout_prompts
from imagen.emoji.demo.budget import Budget
from imagen.emoji.prompts import WORDINGS
from imagen.emoji.recogniser import load_recogniser
from imagen.emoji.single import objects
from imagen.errors import UserError
from imagen.models.unet import UNet
from imagen.stage.inputs import to_images
from imagen.train.experiment import Experiment
from imagen.train.ranks import Ranks

BATCH = 16


@dataclass
class SampledImages:
    """Images in the order of their prompts; if time ran out, the last ones are missing."""

    prompts: list[HeldoutPrompt]
    small: list[Image.Image] = field(default_factory=list)  # 64 pixels
    large: list[Image.Image] = field(default_factory=list)  # 256 pixels, of the first prompts


def prompts_for(budget: Budget) -> list[HeldoutPrompt]:
    """Return held-out prompts: all objects in plain words first, then again in other words."""
    n = min(budget.prompts, budget.objects * len(WORDINGS))
    return heldout_prompts(n, limit_objects=budget.objects, wordings=len(WORDINGS))


def sample_images(
    cascade: Cascade | None,
    prompts: Sequence[HeldoutPrompt],
    *,
    shown: int = 0,
    device: torch.device,
    seconds: float | None = None,
) -> SampledImages | None:
    """Sample every prompt at 64 pixels, and the first `shown` at 256 if the cascade can; None without a cascade.

    seconds: start no further batch after this time; the first one is always sampled.
    """
    if cascade is None:
        return None
    began, drawn = time.monotonic(), SampledImages([])
    texts = [each.prompt for each in prompts]
    request: dict[str, Any] = {"device": str(device), "batch_size": BATCH, "progress": False}
    for begin in range(0, len(prompts), BATCH):
        if drawn.small and seconds is not None and time.monotonic() - began > seconds:
            break
        some = range(begin, min(begin + BATCH, len(prompts)))
        drawn.small += cascade.sample([texts[i] for i in some], seeds=list(some), stages=1, **request)
        drawn.prompts += [prompts[i] for i in some]
    if len(cascade.stages) > 1:
        for i in range(min(shown, len(drawn.small))):
            if drawn.large and seconds is not None and time.monotonic() - began > seconds:
                break
            drawn.large += cascade.sample([texts[i]], seeds=i, start=[drawn.small[i]], **request)
    return drawn


def untrained(experiment: Experiment, budget: Budget, ranks: Ranks) -> SampledImages:
    """Return what the base draws before its first step: its last layer is zero, so it knows no picture but gray."""
    stage = experiment.stage
    prompts = prompts_for(budget)[: budget.shown]
    null_LD = torch.zeros(1, stage.unet.text_width or 1)
    pictures = Stage(stage, UNet(stage.unet)).sample(
        list(range(len(prompts))),
        size=(stage.resolution, stage.resolution),
        settings=stage.sampling,
        texts=[null_LD] * len(prompts),
        unconditional=null_LD,
        device=ranks.device,
        precision=experiment.train.precision,
    )
    return SampledImages(prompts, to_images(pictures))


def truth(prompts: Sequence[HeldoutPrompt], plan_objects: int) -> list[Image.Image]:
    """Return the real drawing of each prompt at 64 pixels, which training never showed on that background."""
    by_name = {emoji.name: emoji for emoji in objects(plan_objects)}
    return [
        Image.open(io.BytesIO(compose(by_name[each.object], each.colour, centred=True).render(64))) for each in prompts
    ]


def scores(drawn: SampledImages) -> list[tuple[PromptScore, str]]:
    """Return for each picture what is right, and the colour of its background.

    Without the recogniser's weights only the background is judged, and the object counts as right.
    """
    colours = [background_colour(np.array(picture)) for picture in drawn.small]
    try:
        seen = load_recogniser().detect(drawn.small)
    except UserError:
        return [(PromptScore(True, c == p.colour), c) for p, c in zip(drawn.prompts, colours, strict=True)]
    judged = [score_image(p, picture, s) for p, picture, s in zip(drawn.prompts, drawn.small, seen, strict=True)]
    return list(zip(judged, colours, strict=True))


def recogniser_is_there() -> bool:
    """Whether objects can be judged at all in this copy of the package."""
    try:
        load_recogniser()
    except UserError:
        return False
    return True
