"""Sample images of held-out prompts, and score how well they match."""

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
    """Images in the order of their prompts. The last ones are missing if time ran out."""

    prompts: list[HeldoutPrompt]
    small: list[Image.Image] = field(default_factory=list)  # 64 pixels
    large: list[Image.Image] = field(default_factory=list)  # 256 pixels, for the first prompts


def prompts_for(budget: Budget) -> list[HeldoutPrompt]:
    """Return held-out prompts: first one per object in the plain wording, then the same in other wordings."""
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
    """Sample every prompt at 64 pixels, and the first `shown` at 256 if the cascade has two stages.

    seconds: start no further batch after this time; the first batch is always sampled.
    Returns None without a cascade.
    """
    if cascade is None:
        return None
    start, sampled = time.monotonic(), SampledImages([])
    texts = [each.prompt for each in prompts]
    request: dict[str, Any] = {"device": str(device), "batch_size": BATCH, "progress": False}
    for begin in range(0, len(prompts), BATCH):
        if sampled.small and seconds is not None and time.monotonic() - start > seconds:
            break
        batch = range(begin, min(begin + BATCH, len(prompts)))
        sampled.small += cascade.sample([texts[i] for i in batch], seeds=list(batch), stages=1, **request)
        sampled.prompts += [prompts[i] for i in batch]
    if len(cascade.stages) > 1:
        for i in range(min(shown, len(sampled.small))):
            if sampled.large and seconds is not None and time.monotonic() - start > seconds:
                break
            sampled.large += cascade.sample([texts[i]], seeds=i, start=[sampled.small[i]], **request)
    return sampled


def sample_untrained(experiment: Experiment, budget: Budget, ranks: Ranks) -> SampledImages:
    """Sample the base before its first step. The images are gray, because the last layer is initialised to zero."""
    stage = experiment.stage
    prompts = prompts_for(budget)[: budget.shown]
    null_LD = torch.zeros(1, stage.unet.text_width or 1)
    images = Stage(stage, UNet(stage.unet)).sample(
        list(range(len(prompts))),
        size=(stage.resolution, stage.resolution),
        settings=stage.sampling,
        texts=[null_LD] * len(prompts),
        unconditional=null_LD,
        device=ranks.device,
        precision=experiment.train.precision,
    )
    return SampledImages(prompts, to_images(images))


def original_drawings(prompts: Sequence[HeldoutPrompt], limit_objects: int) -> list[Image.Image]:
    """Render the original drawing of each prompt at 64 pixels, on its held-out background."""
    by_name = {emoji.name: emoji for emoji in objects(limit_objects)}
    return [
        Image.open(io.BytesIO(compose(by_name[each.object], each.colour, centred=True).render(64))) for each in prompts
    ]


def scores(sampled: SampledImages) -> list[tuple[PromptScore, str]]:
    """Return the score of each image and the colour of its background.

    Without the recogniser's weights only the background is scored, and the object counts as correct.
    """
    colours = [background_colour(np.array(image)) for image in sampled.small]
    try:
        detections = load_recogniser().detect(sampled.small)
    except UserError:
        return [(PromptScore(True, c == p.colour), c) for p, c in zip(sampled.prompts, colours, strict=True)]
    scored = [score_image(*each) for each in zip(sampled.prompts, sampled.small, detections, strict=True)]
    return list(zip(scored, colours, strict=True))


def has_recogniser() -> bool:
    """Return whether this installation contains the recogniser's weights."""
    try:
        load_recogniser()
    except UserError:
        return False
    return True
