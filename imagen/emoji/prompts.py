"""Generate prompts for held-out combinations, with the properties that an image must have.

The data set itself is not needed.
"""

from typing import NamedTuple

from imagen.emoji.picture import hashed
from imagen.emoji.scene import NUMBERS, RELATIONS, group_caption, groups, pair_caption, pairs
from imagen.emoji.single import OBJECTS, caption, heldout_colour, objects
from imagen.errors import UserError


class HeldoutPrompt(NamedTuple):
    """A prompt and the properties that its image must have."""

    prompt: str
    colour: str
    object: str
    number: int = 1  # of `object`
    relation: str | None = None  # of `object` to `other`: a name in RELATIONS
    other: str | None = None


# Values of `wording` for `caption`; the first one selects the plain phrase.
WORDINGS = (0.0, 0.6, 0.8, 0.9)


def heldout_prompts(
    n: int, seed: int = 0, limit_objects: int | None = OBJECTS, *, wordings: int = 1
) -> list[HeldoutPrompt]:
    """Return `n` captions of held-out combinations of object and colour, each of a different object.

    limit_objects: must equal that of the data set, otherwise a prompt may name an object that is not in it.
    wordings: number of phrases per combination, 1 to 4. All combinations appear in one phrase before the next is used.

    Raises UserError if there are fewer than `n` prompts.
    """
    ordered = sorted(objects(limit_objects), key=lambda emoji: hashed("prompts", seed, emoji.code))
    if n > len(ordered) * wordings:
        raise UserError(f"{n} held-out prompts requested, but there are only {len(ordered)} objects")
    colours = {emoji: heldout_colour(emoji) for emoji in ordered}
    worded = [
        HeldoutPrompt(caption(emoji, colours[emoji], wording=wording), colours[emoji], emoji.name)
        for wording in WORDINGS[:wordings]
        for emoji in ordered
    ]
    return worded[:n]


def heldout_relations(n: int, seed: int = 0, limit_objects: int | None = OBJECTS) -> list[HeldoutPrompt]:
    """Return `n` plain captions of held-out pairs of objects, on backgrounds that are in the training data for both."""
    found = []
    for scene in pairs(objects(limit_objects), n, heldout=True, seed=hashed("prompts", seed)):
        first, second = (placed.emoji for placed in scene.placed)
        assert scene.relation in RELATIONS
        text = pair_caption(first, second, scene.relation, scene.colour)
        found.append(HeldoutPrompt(text, scene.colour, first.name, relation=scene.relation, other=second.name))
    return found


def heldout_counts(n: int, seed: int = 0, limit_objects: int | None = OBJECTS) -> list[HeldoutPrompt]:
    """Return `n` plain captions of two to four copies of an object, with the count that is held out for it."""
    found = []
    for scene in groups(objects(limit_objects), n, heldout=True, seed=hashed("prompts", seed)):
        emoji, number = scene.placed[0].emoji, len(scene.placed)
        assert number in NUMBERS
        text = group_caption(emoji, number, scene.colour)
        found.append(HeldoutPrompt(text, scene.colour, emoji.name, number=number))
    return found
