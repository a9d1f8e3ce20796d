"""Score how well an image matches its prompt: object, background colour, number and relation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen.emoji.colour import background_colour
from imagen.emoji.prompts import HeldoutPrompt
from imagen.emoji.recogniser import Detection, Recogniser

PARTS = ("role", "gender", "tone")
# Direction from the second object to the first, (right, down), by relation.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


class PromptScore(NamedTuple):
    """The properties of one image that match its prompt; None if the prompt does not specify the property."""

    object: bool  # the object, or both objects, are detected
    colour: bool  # the background has the colour
    number: bool | None = None  # exactly that number of objects is detected, and no other object
    relation: bool | None = None  # both objects are detected, in the relation
    # Of a person, whose name has these parts, as in "astronaut/woman/dark":
    role: bool | None = None
    gender: bool | None = None
    tone: bool | None = None

    @property
    def all(self) -> bool:
        return all(value for value in self if value is not None)


def score_image(prompt: HeldoutPrompt, image: Image.Image, detections: Sequence[Detection]) -> PromptScore:
    """Score one image. detections: most probable first, as `Recogniser.detect` returns them."""
    colour = background_colour(np.array(image)) == prompt.colour
    names = [each.name for each in detections]
    if prompt.relation is not None and prompt.other is not None:
        both = prompt.object in names and prompt.other in names
        return PromptScore(
            both, colour, relation=both and relation(detections, prompt.object, prompt.other) == prompt.relation
        )
    if prompt.number > 1:
        return PromptScore(prompt.object in names, colour, number=names == [prompt.object] * prompt.number)
    score = PromptScore(names[:1] == [prompt.object], colour)
    wanted, found = prompt.object.split("/"), [*names[0].split("/"), "", ""]
    if len(wanted) == len(PARTS):
        score = score._replace(**{part: found[i] == wanted[i] for i, part in enumerate(PARTS)})
    return score


def relation(detections: Sequence[Detection], first: str, second: str) -> str:
    """Return the direction from the most probable `second` to the most probable `first`: a name in DIRECTIONS."""
    a, b = (next(each for each in detections if each.name == name) for name in (first, second))
    x, y = a.x - b.x, a.y - b.y
    return max(DIRECTIONS, key=lambda name: x * DIRECTIONS[name][0] + y * DIRECTIONS[name][1])


def accuracies(scores: Sequence[PromptScore]) -> dict[str, float]:
    """Return the fraction in [0, 1] of images that match, per property and for all properties together ("all")."""
    result = {}
    for field in (*PromptScore._fields, "all"):
        values = [value for each in scores if (value := getattr(each, field)) is not None]
        if values:
            result[field] = sum(values) / len(values)
    return result


def evaluate(
    recogniser: Recogniser, prompts: dict[str, list[HeldoutPrompt]], images: dict[str, list[Image.Image]]
) -> tuple[dict[str, Any], dict[str, list[PromptScore]]]:
    """Return the accuracies per kind of prompt, {"single": {"object": 0.9, ...}, ...}, and the score of each image."""
    scores = {
        kind: [
            score_image(prompt, image, detections)
            for prompt, image, detections in zip(chosen, images[kind], recogniser.detect(images[kind]), strict=True)
        ]
        for kind, chosen in prompts.items()
    }
    return {kind: accuracies(each) for kind, each in scores.items() if each}, scores
