"""Evaluate an emoji cascade on held-out prompts: one row of scores per guidance scale."""

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
from imagen.errors import check_number

Row = dict[str, Any]
MOST_PROMPTS = 10_000  # maximum per kind


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
    "single", "people", "relation", "count": accuracies for each kind of prompt (`imagen.emoji.alignment.accuracies`)
    "kid": kernel distance of the images of one object from held-out drawings (`Suite.distances`)
    "kid_floor": that of original drawings of the same prompts. It can be below 0, because both sets show the same
        objects.

    on_pictures: called with the guidance scale, the captions (an incorrect image is marked in its caption) and the
        images.

    Raises UserError before sampling if the stage does not support the settings.
    """
    for scale in guidance:  # reports every user error before sampling
        cascade.request([""], stages=1, guidance=scale, steps=steps, batch_size=batch_size, device=device)
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
            **accuracies,
            "kid": distance,
            "kid_floor": floor,
        }


def choose_suite(recogniser: Recogniser, folder: Path, n: int, limit_objects: int | None = OBJECTS) -> Suite:
    """Return `n` prompts of each kind: those beside the recogniser in `folder`, or else those of OpenMoji's drawings.

    Raises UserError if there are fewer than two prompts or objects (the kernel distance needs two).
    """
    check_number("the number of prompts of each kind (--n)", n, least=2, most=MOST_PROMPTS)
    if (saved := load_suite(folder)) is not None:
        return saved.first(n)
    return openmoji_suite(recogniser, n, limit_objects)


def _captions(prompts: Sequence[Any], scores: Sequence[PromptScore]) -> list[str]:
    """Return the prompts, with the properties that are wrong in front."""
    return [
        prompt.prompt if score.all else f"({', '.join(_wrong(score))} wrong) {prompt.prompt}"
        for prompt, score in zip(prompts, scores, strict=True)
    ]


def _wrong(score: PromptScore) -> list[str]:
    """Return the names of the properties that do not match the prompt."""
    return [name for name, value in zip(PromptScore._fields, score, strict=True) if value is False]
