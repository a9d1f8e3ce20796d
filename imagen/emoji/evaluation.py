"""Evaluate an emoji cascade on held-out prompts: one row of scores per guidance scale."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imagen.cascade import Cascade
from imagen.emoji.alignment import PromptScore, evaluate
from imagen.emoji.openmoji_suite import openmoji_suite
from imagen.emoji.recogniser import Recogniser
from imagen.emoji.single import OBJECTS
from imagen.emoji.suite import SINGLE, Suite, load_suite
from imagen.errors import UserError, check_number, quoted

Row = dict[str, Any]
MOST_PROMPTS = 10_000  # maximum per kind


def check_settings(
    cascade: Cascade,
    *,
    guidance: Sequence[float | None] = (None,),
    steps: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> None:
    """Raise UserError if the base stage does not support the settings of `scores`."""
    for scale in guidance:
        cascade.request([""], stages=1, guidance=scale, steps=steps, batch_size=batch_size, device=device)


def scores(
    cascade: Cascade,
    recogniser: Recogniser,
    suite: Suite,
    *,
    guidance: Sequence[float | None] = (None,),
    steps: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    on_pictures: Callable[[float, list[str], list[Image.Image]], None] | None = None,
) -> Iterator[Row]:
    """Sample the prompts of `suite` with the base stage at each guidance scale (None: its default).

    Every guidance scale uses the same prompts and seeds. A row has these fields:
    "step", "images": training steps and images of the weights
    "guidance", "steps", "prompts": settings, and the number of prompts of each kind
    "recogniser": hash of the recogniser's weights
    "single", "people", "relation", "count": accuracies for each kind of prompt (`imagen.emoji.alignment.accuracies`)
    "kid": kernel distance of the images of one object from held-out drawings (`Suite.distances`)
    "kid_floor": that of original drawings of the same prompts. It can be below 0, because both sets show the same
        objects.

    on_pictures: called with the guidance scale, the captions (an incorrect image is marked in its caption) and the
        images.

    Raises UserError before sampling if the stage does not support the settings.
    """
    check_settings(cascade, guidance=guidance, steps=steps, batch_size=batch_size, device=device)
    prompts = {kind: chosen for kind, chosen in suite.prompts.items() if chosen}
    stage = cascade.stages[0]
    for scale in guidance:
        images = {
            kind: cascade.sample(
                [each.prompt for each in chosen],
                seeds=list(range(len(chosen))),
                stages=1,
                guidance=scale,
                steps=steps,
                batch_size=batch_size,
                device=device,
            )
            for kind, chosen in prompts.items()
        }
        used = stage.config.sampling.guidance if scale is None else scale
        accuracies, prompt_scores = evaluate(recogniser, prompts, images)
        if on_pictures is not None:
            kinds = list(images)
            captions = [text for kind in kinds for text in _captions(prompts[kind], prompt_scores[kind])]
            on_pictures(used, captions, [image for kind in kinds for image in images[kind]])
        distance, floor = suite.distances({kind: recogniser.embed(images[kind]) for kind in SINGLE if kind in images})
        yield {
            "step": stage.info.get("step"),
            "images": stage.info.get("images"),
            "guidance": used,
            "steps": steps or stage.config.sampling.steps,
            "prompts": {kind: len(chosen) for kind, chosen in prompts.items()},
            "recogniser": recogniser.sha256,
            **accuracies,
            "kid": distance,
            "kid_floor": floor,
        }


def identities(
    cascade: Cascade,
    recogniser: Recogniser,
    suite: Suite,
    *,
    guidance: Sequence[float | None] = (None,),
    steps: int | None = None,
) -> dict[float, str]:
    """Return for each guidance scale a hash of everything that the images of `scores` and their marks depend on."""
    prompts = {kind: [each.prompt for each in chosen] for kind, chosen in suite.prompts.items()}
    found = {}
    for scale in guidance:
        request = cascade.request([""], stages=1, guidance=scale, steps=steps)
        described = json.dumps([cascade.metadata(request, 0), prompts, recogniser.sha256])
        found[request.settings[0].guidance] = hashlib.sha256(described.encode()).hexdigest()
    return found


def choose_suite(recogniser: Recogniser, folder: Path, n: int, limit_objects: int | None = OBJECTS) -> Suite:
    """Return at most `n` prompts of each kind: those saved beside the recogniser in `folder`, or those of OpenMoji.

    limit_objects: of OpenMoji.

    Raises UserError if `n` is less than two (the kernel distance needs two), and if the recogniser does not know an
    object or has other features.
    """
    check_number("the number of prompts of each kind (--n)", n, least=2, most=MOST_PROMPTS)
    saved = load_suite(folder)
    suite = saved.first(n) if saved is not None else openmoji_suite(recogniser, n, limit_objects)
    named = {each.object for chosen in suite.prompts.values() for each in chosen}
    named |= {each.other for chosen in suite.prompts.values() for each in chosen if each.other is not None}
    if unknown := sorted(named - set(recogniser.names)):
        raise UserError(
            f"the recogniser in {folder} does not know {quoted(unknown[0])} and {len(unknown) - 1} other objects of "
            "the prompts; train one on the same drawings (--recogniser), or evaluate fewer objects (--objects)"
        )
    if suite.drawings_ND.shape[1] != 4 * recogniser.width:
        raise UserError(f"the prompts in {folder} have features of another recogniser; make them again")
    return suite


def _captions(prompts: Sequence[Any], scores: Sequence[PromptScore]) -> list[str]:
    """Return the prompts, with the properties that are wrong in front."""
    return [
        prompt.prompt if score.all else f"({', '.join(_wrong(score))} wrong) {prompt.prompt}"
        for prompt, score in zip(prompts, scores, strict=True)
    ]


def _wrong(score: PromptScore) -> list[str]:
    """Return the names of the properties that do not match the prompt."""
    return [name for name, value in zip(PromptScore._fields, score, strict=True) if value is False]
