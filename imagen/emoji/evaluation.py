"""Evaluate an emoji cascade on held-out prompts: one row of scores per guidance scale."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from imagen.cascade import Cascade
from imagen.emoji.alignment import PromptScore, evaluate, suite
from imagen.emoji.dataset import OBJECTS, compose, heldout_colour
from imagen.emoji.recogniser import Recogniser
from imagen.emoji.single import objects
from imagen.errors import UserError, check_number
from imagen.evaluate.metrics.kernel import kid

Row = dict[str, Any]
VARIANTS = range(4)  # held-out drawings per object with which samples are compared
FLOOR = range(4, 5)  # further drawings, compared with VARIANTS for the floor of the distance
MOST_PROMPTS = 10_000  # maximum per kind


def scores(
    cascade: Cascade,
    recogniser: Recogniser,
    *,
    guidance: Sequence[float | None] = (None,),
    n: int = 64,
    limit_objects: int | None = OBJECTS,
    steps: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    on_pictures: Callable[[float, list[str], list[Image.Image]], None] | None = None,
) -> Iterator[Row]:
    """Sample `n` held-out prompts of each kind with the base stage at each guidance scale (None: its default).

    Every guidance scale uses the same prompts and seeds. A row has these fields:
    "step", "images": training steps and images of the weights
    "guidance", "steps", "prompts": settings, and the number of prompts of each kind
    "single", "relation", "count": accuracies for each kind of prompt (`imagen.emoji.alignment.accuracies`)
    "kid": kernel distance of the images of single objects from held-out drawings, on the recogniser's features; each
        feature is scaled by its standard deviation among the drawings
    "kid_floor": kernel distance of other drawings of the same prompts. It is below 0, because both sets show the same
        objects.

    on_pictures: called with the guidance scale, the captions (an incorrect image is marked in its caption) and the
        images.

    Raises UserError before sampling if there are fewer than two prompts or objects (the kernel distance needs two), or
    if the stage does not support the settings.
    """
    check_number("the number of prompts of each kind (--n)", n, least=2, most=MOST_PROMPTS)
    prompts = suite(n, limit_objects)
    if len(prompts["single"]) < 2:
        raise UserError("the kernel distance needs two objects or more; evaluate with more objects (--objects)")
    for scale in guidance:  # reports every user error before sampling
        cascade.request([""], stages=1, guidance=scale, steps=steps, batch_size=batch_size, device=device)
    real, floor = (recogniser.embed(heldout_drawings(limit_objects, variants)) for variants in (VARIANTS, FLOOR))
    mean, std = real.mean(axis=0), real.std(axis=0) + 1e-6
    index_of = {emoji.name: index for index, emoji in enumerate(objects(limit_objects))}
    floor = floor[[index_of[each.object] for each in prompts["single"]]]
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
            if chosen
        }
        used = stage.config.sampling.guidance if scale is None else scale
        prompts = {kind: prompts[kind] for kind in images}
        accuracies, prompt_scores = evaluate(recogniser, prompts, images)
        if on_pictures is not None:
            kinds = list(images)
            captions = [text for kind in kinds for text in _captions(prompts[kind], prompt_scores[kind])]
            on_pictures(used, captions, [image for kind in kinds for image in images[kind]])
        yield {
            "step": stage.info.get("step"),
            "images": stage.info.get("images"),
            "guidance": used,
            "steps": steps or stage.config.sampling.steps,
            "prompts": {kind: len(chosen) for kind, chosen in prompts.items()},
            **accuracies,
            "kid": kid((recogniser.embed(images["single"]) - mean) / std, (real - mean) / std),
            "kid_floor": kid((floor - mean) / std, (real - mean) / std),
        }


def heldout_drawings(limit_objects: int | None, variants: Iterable[int], size: int = 64) -> list[Image.Image]:
    """Render the held-out combinations of object and colour, object by object."""
    return [
        Image.open(io.BytesIO(compose(emoji, heldout_colour(emoji), variant).render(size)))
        for emoji in objects(limit_objects)
        for variant in variants
    ]


def _captions(prompts: Sequence[Any], scores: Sequence[PromptScore]) -> list[str]:
    """Return the prompts, with the properties that are wrong in front."""
    return [
        prompt.prompt if score.all else f"({', '.join(_wrong(score))} wrong) {prompt.prompt}"
        for prompt, score in zip(prompts, scores, strict=True)
    ]


def _wrong(score: PromptScore) -> list[str]:
    """Return the names of the properties that do not match the prompt."""
    return [name for name, value in zip(PromptScore._fields, score, strict=True) if value is False]
