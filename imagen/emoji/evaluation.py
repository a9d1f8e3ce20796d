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

    A row holds "step" and "images" of the weights, "guidance", "steps", "prompts" (of each kind), the shares of
    `imagen.emoji.alignment.accuracies` under "single", "relation" and "count"; "kid": the kernel distance of the
    single ones from held-out drawings on the recogniser's features, each scaled by its deviation among these drawings;
    and "kid_floor": that of other drawings of the same prompts, which is below 0 because both sets show the same
    objects. The same prompts and seeds for each weight.
    on_pictures: called with guidance, captions (those of wrong pictures say so) and pictures.

    Raises UserError, before anything is drawn, for fewer than two prompts or objects, between which there is no kernel
    distance, and for settings that the stage cannot be sampled with.
    """
    check_number("the number of prompts of each kind (--n)", n, least=2, most=MOST_PROMPTS)
    prompts = suite(n, limit_objects)
    if len(prompts["single"]) < 2:
        raise UserError("the kernel distance needs two objects or more; evaluate with more objects (--objects)")
    for weight in guidance:  # reports every user error before sampling
        cascade.request([""], stages=1, guidance=weight, steps=steps, batch_size=batch_size, device=device)
    real, floor = (recogniser.embed(heldout_drawings(limit_objects, variants)) for variants in (VARIANTS, FLOOR))
    mean, std = real.mean(axis=0), real.std(axis=0) + 1e-6
    named = {emoji.name: index for index, emoji in enumerate(objects(limit_objects))}
    floor = floor[[named[each.object] for each in prompts["single"]]]
    stage = cascade.stages[0]
    for weight in guidance:
        pictures = {
            kind: cascade.sample(
                [each.prompt for each in asked],
                seeds=list(range(len(asked))),
                stages=1,
                guidance=weight,
                steps=steps,
                batch_size=batch_size,
                device=device,
            )
            for kind, asked in prompts.items()
            if asked
        }
        used = stage.config.sampling.guidance if weight is None else weight
        prompts = {kind: prompts[kind] for kind in pictures}
        found, prompt_scores = evaluate(recogniser, prompts, pictures)
        if on_pictures is not None:
            kinds = list(pictures)
            captions = [text for kind in kinds for text in _captions(prompts[kind], prompt_scores[kind])]
            on_pictures(used, captions, [picture for kind in kinds for picture in pictures[kind]])
        yield {
            "step": stage.info.get("step"),
            "images": stage.info.get("images"),
            "guidance": used,
            "steps": steps or stage.config.sampling.steps,
            "prompts": {kind: len(asked) for kind, asked in prompts.items()},
            **found,
            "kid": kid((recogniser.embed(pictures["single"]) - mean) / std, (real - mean) / std),
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
    return [
        prompt.prompt if score.all else f"({', '.join(_wrong(score))} wrong) {prompt.prompt}"
        for prompt, score in zip(prompts, scores, strict=True)
    ]


def _wrong(score: PromptScore) -> list[str]:
    return [name for name, value in zip(PromptScore._fields, score, strict=True) if value is False]
