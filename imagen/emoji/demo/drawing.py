"""Pictures of prompts that were never trained on, and whether they show what was asked for."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagen.cascade import Cascade, Stage
from imagen.emoji.alignment import Verdict, judge
from imagen.emoji.colour import background_colour
from imagen.emoji.dataset import HeldoutPrompt, compose, heldout_prompts
from imagen.emoji.demo.plan import Plan
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
class Drawings:
    """Pictures in the order of their prompts; where time ran out, the last ones are missing."""

    prompts: list[HeldoutPrompt]
    small: list[Image.Image] = field(default_factory=list)  # 64 pixels
    large: list[Image.Image] = field(default_factory=list)  # 256 pixels, of the first prompts


def prompts_for(plan: Plan) -> list[HeldoutPrompt]:
    """Return held-out prompts: all objects in plain words first, then again in other words."""
    n = min(plan.prompts, plan.objects * len(WORDINGS))
    return heldout_prompts(n, limit_objects=plan.objects, wordings=len(WORDINGS))


def draw(
    cascade: Cascade | None,
    prompts: Sequence[HeldoutPrompt],
    *,
    shown: int = 0,
    device: torch.device,
    seconds: float | None = None,
) -> Drawings | None:
    """Draw every prompt at 64 pixels, and the first `shown` at 256 where the cascade can; None without a cascade.

    seconds: begin no further batch after so long; the first one is always drawn.
    """
    if cascade is None:
        return None
    began, drawn = time.monotonic(), Drawings([])
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


def untrained(experiment: Experiment, plan: Plan, ranks: Ranks) -> Drawings:
    """Return what the base draws before its first step: its last layer is zero, so it knows no picture but gray."""
    stage = experiment.stage
    prompts = prompts_for(plan)[: plan.shown]
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
    return Drawings(prompts, to_images(pictures))


def truth(prompts: Sequence[HeldoutPrompt], plan_objects: int) -> list[Image.Image]:
    """Return the real drawing of each prompt at 64 pixels, which training never showed on that background."""
    by_name = {emoji.name: emoji for emoji in objects(plan_objects)}
    return [
        Image.open(io.BytesIO(compose(by_name[each.object], each.colour, centred=True).render(64))) for each in prompts
    ]


def verdicts(drawn: Drawings) -> list[tuple[Verdict, str]]:
    """Return for each picture what is right, and the colour of its background.

    Without the recogniser's weights only the background is judged, and the object counts as right.
    """
    colours = [background_colour(np.array(picture)) for picture in drawn.small]
    try:
        seen = load_recogniser().see(drawn.small)
    except UserError:
        return [(Verdict(True, c == p.colour), c) for p, c in zip(drawn.prompts, colours, strict=True)]
    judged = [judge(p, picture, s) for p, picture, s in zip(drawn.prompts, drawn.small, seen, strict=True)]
    return list(zip(judged, colours, strict=True))


def recogniser_is_there() -> bool:
    """Whether objects can be judged at all in this copy of the package."""
    try:
        load_recogniser()
    except UserError:
        return False
    return True
