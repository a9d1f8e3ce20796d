"""Does a picture show what its prompt asks for? Object, background colour, number and relation, each by measurement."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen.emoji.colour import background_colour
from imagen.emoji.dataset import HeldoutPrompt, heldout_counts, heldout_prompts, heldout_relations
from imagen.emoji.recogniser import Recogniser, Seen

# Words of a relation: how far the first object lies right of and below the second, in which it must lead.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


class Verdict(NamedTuple):
    """What is right in one picture; None where the prompt does not ask."""

    object: bool  # the object, or both, can be seen
    colour: bool  # of the background
    number: bool | None = None  # as many as asked for, and nothing else
    relation: bool | None = None  # both objects, and where they should be

    @property
    def all(self) -> bool:
        return all(value for value in self if value is not None)


def judge(prompt: HeldoutPrompt, picture: Image.Image, seen: Sequence[Seen]) -> Verdict:
    """seen: the objects in `picture`, the surest first (`Recogniser.see`)."""
    colour = background_colour(np.array(picture)) == prompt.colour
    names = [each.name for each in seen]
    if prompt.relation is not None and prompt.other is not None:
        both = prompt.object in names and prompt.other in names
        return Verdict(both, colour, relation=both and relation(seen, prompt.object, prompt.other) == prompt.relation)
    if prompt.number > 1:
        return Verdict(prompt.object in names, colour, number=names == [prompt.object] * prompt.number)
    return Verdict(names[:1] == [prompt.object], colour)


def relation(seen: Sequence[Seen], first: str, second: str) -> str:
    """Where the surest `first` lies from the surest `second`: a name in DIRECTIONS."""
    a, b = (next(each for each in seen if each.name == name) for name in (first, second))
    x, y = a.x - b.x, a.y - b.y
    return max(DIRECTIONS, key=lambda name: x * DIRECTIONS[name][0] + y * DIRECTIONS[name][1])


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share in [0, 1] of pictures that are right, by what was asked, and in "all" of it."""
    found = {}
    for field in (*Verdict._fields, "all"):
        values = [value for each in verdicts if (value := getattr(each, field)) is not None]
        if values:
            found[field] = sum(values) / len(values)
    return found


def suite(n: int, limit_objects: int | None) -> dict[str, list[HeldoutPrompt]]:
    """At most `n` held-out prompts of each kind: "single", "relation", "count"."""
    single = heldout_prompts(min(n, limit_objects or n), limit_objects=limit_objects)
    return {
        "single": single,
        "relation": heldout_relations(n, limit_objects=limit_objects),
        "count": heldout_counts(n, limit_objects=limit_objects),
    }


def evaluate(
    recogniser: Recogniser, prompts: dict[str, list[HeldoutPrompt]], pictures: dict[str, list[Image.Image]]
) -> tuple[dict[str, Any], dict[str, list[Verdict]]]:
    """Shares of each kind of prompt, {"single": {"object": 0.9, ...}, ...}, and the verdicts on each picture."""
    verdicts = {
        kind: [
            judge(prompt, picture, seen)
            for prompt, picture, seen in zip(asked, pictures[kind], recogniser.see(pictures[kind]), strict=True)
        ]
        for kind, asked in prompts.items()
    }
    return {kind: shares(each) for kind, each in verdicts.items() if each}, verdicts
