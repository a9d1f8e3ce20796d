"""Compose images of two objects in a relation ("a horse to the left of a bus"), or of two to four copies of one.

Scene k of each type is a function of (seed, k) and the list of objects. One in eight pairs of objects, one of the three
counts per object, and the held-out background of each object are not used in training.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from imagen.emoji.openmoji import Emoji, Named
from imagen.emoji.picture import PALETTE, Picture, Placed, background, hashed, in_style
from imagen.emoji.single import heldout_colour
from imagen.emoji.styles import credit

# Name: (direction from the second object to the first in x, in y, words)
RELATIONS = {
    "left": (-1, 0, "to the left of"),
    "right": (1, 0, "to the right of"),
    "above": (0, -1, "above"),
    "below": (0, 1, "below"),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
# Centres of the objects, relative to the centre of the image, in fractions of its side.
LAYOUTS = {
    2: ((-0.25, 0.0), (0.25, 0.0)),
    3: ((0.0, -0.25), (-0.25, 0.25), (0.25, 0.25)),
    4: ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)),
}
SIDES = (0.40, 0.47)  # minimum and maximum side of a drawing's square
UNCHANGED = frozenset(("bison", "deer", "dice", "moai", "moose", "sheep", "shrimp", "squid"))
IRREGULAR = {
    "foot": "feet",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "man": "men",
    "woman": "women",
}


@dataclass(frozen=True, kw_only=True)
class Scene(Picture):
    """An image of two objects in a relation, or of several copies of one."""

    placed_drawings: tuple[Placed, ...]
    relation: str | None = None  # of the first drawing to the second: a name in RELATIONS; None: copies of one object

    @property
    def placed(self) -> tuple[Placed, ...]:
        return self.placed_drawings

    @property
    def about(self) -> dict[str, Any]:
        first, last = self.placed[0].emoji, self.placed[-1].emoji
        source = credit(first.style)
        about: dict[str, Any] = {"object": first.name, "code_point": first.code, "colour": self.colour}
        if self.relation is None:
            about["count"] = len(self.placed)
        else:
            about |= {"relation": self.relation, "other": last.name, "other_code_point": last.code}
        about["boxes"] = [[round(value, 4) for value in (side, x, y)] for _, side, x, y in self.placed]
        about |= {"source": source["source"], "licence": source["licence"]}
        return about if first.style is None else about | {"style": first.style.name}


def compose_pair(first: Emoji, second: Emoji, relation: str, colour: str, seed: int = 0, key: str = "") -> Scene:
    """Return an image of `first` in `relation` to `second`; (seed, key) determines positions, side and wording."""
    rng = random.Random(hashed(seed, "pair", key))
    to_x, to_y, _ = RELATIONS[relation]
    side = SIDES[0] + (SIDES[1] - SIDES[0]) * rng.random()
    placed = []
    for emoji, sign in ((first, 1), (second, -1)):
        along = 0.5 - side  # free space along the axis on which both lie
        across = 0.12
        jitter_x, jitter_y = rng.random() - 0.5, rng.random() - 0.5
        x = 0.5 + sign * to_x * 0.25 + (along if to_x else across) * jitter_x
        y = 0.5 + sign * to_y * 0.25 + (along if to_y else across) * jitter_y
        placed.append(Placed(emoji, side, x, y))
    return Scene(
        key=key,
        colour=colour,
        caption=in_style(pair_caption(first, second, relation, colour, rng.random()), first),
        placed_drawings=tuple(placed),
        relation=relation,
    )


def compose_group(emoji: Emoji, number: int, colour: str, seed: int = 0, key: str = "") -> Scene:
    """Return an image of `number` copies of `emoji`, 2 to 4; (seed, key) determines positions, side and wording."""
    rng = random.Random(hashed(seed, "group", key))
    side = SIDES[0] + (SIDES[1] - SIDES[0]) * rng.random()
    room = 0.5 - side
    placed = tuple(
        Placed(emoji, side, 0.5 + x + room * (rng.random() - 0.5), 0.5 + y + room * (rng.random() - 0.5))
        for x, y in LAYOUTS[number]
    )
    caption = in_style(group_caption(emoji, number, colour, rng.random()), emoji)
    return Scene(key=key, colour=colour, caption=caption, placed_drawings=placed)


def pair_caption(first: Emoji, second: Emoji, relation: str, colour: str, wording: float = 0.0) -> str:
    """Return a caption such as "a horse to the left of a bus, on a blue background".

    wording: in [0, 1), selects the phrase.
    """
    words = RELATIONS[relation][2]
    subject, object_ = first.article + first.name, second.article + second.name
    if 0.5 <= wording < 0.7:
        return f"{first.name} {words} {second.name}, {colour} background"
    return _phrase(f"{subject} {words} {object_}", colour, wording, comma=",")


def group_caption(emoji: Emoji, number: int, colour: str, wording: float = 0.0) -> str:
    """Return a caption such as "three horses on a blue background"; `wording` in [0, 1) selects the phrase."""
    return _phrase(f"{NUMBERS[number]} {plural(emoji)}", colour, wording)


def pairs(objects: Sequence[Emoji], number: int, *, heldout: bool, seed: int = 0) -> list[Scene]:
    """Return `number` scenes of two objects for one split, or fewer if there are too few objects."""
    return list(islice(_all_pairs(objects, _max_draws(number), seed, heldout), number))


def groups(objects: Sequence[Emoji], number: int, *, heldout: bool, seed: int = 0) -> list[Scene]:
    """Return `number` scenes of several copies of one object for one split."""
    countable = [emoji for emoji in objects if is_countable(emoji)]
    return list(islice(_all_groups(countable, _max_draws(number), seed, heldout), number))


def is_heldout_pair(first: Emoji, second: Emoji) -> bool:
    """Return whether a pair of objects is held out from training. One in eight pairs is."""
    return hashed("pair", *sorted((first.code, second.code))) % 8 == 0


def heldout_number(emoji: Emoji) -> int:
    """Return the count in NUMBERS that is held out for `emoji`."""
    return list(NUMBERS)[hashed("number", emoji.code) % len(NUMBERS)]


def is_countable(emoji: Named) -> bool:
    """Return whether the name has a plural.

    Plurals ("cherries"), mass nouns ("bread"), "fork and knife" and "the Milky Way" have none.
    """
    return emoji.article in ("a ", "an ") and " and " not in emoji.name


def plural(emoji: Named) -> str:
    """Return the plural of a name, such as "octopuses", "cups of coffee", "people rowing a boat"."""
    split = re.match(r"(person)(?: (?!of|in|with).*)?$", emoji.name) or re.match(
        r"(.+?)(?: (?:of|with|in|on|behind|over|and|taking|without) .*)?$", emoji.name
    )
    assert split is not None
    head, rest = split[1], emoji.name[split.end(1) :]
    before, _, noun = head.rpartition(" ")
    if noun in UNCHANGED or noun.endswith("fish"):
        many = noun
    elif noun in IRREGULAR:
        many = IRREGULAR[noun]
    elif re.search("(s|x|z|ch|sh)$", noun):
        many = f"{noun}es"
    elif re.search("[^aeiou]y$", noun):
        many = f"{noun[:-1]}ies"
    else:
        many = f"{noun}s"
    return f"{before} {many}".strip() + rest


def _max_draws(number: int) -> int:
    """Return the number of draws after which a split is considered exhausted.

    It is large, because most draws belong to the other split.
    """
    return 100 * number + 1000


def _all_pairs(objects: Sequence[Emoji], draws: int, seed: int, heldout: bool) -> Iterator[Scene]:
    for k in range(draws if objects else 0):
        rng = random.Random(hashed(seed, "pairs", k))
        first, second = _pick(rng, objects), _pick(rng, objects)
        relation, colour = _pick(rng, list(RELATIONS)), _pick(rng, list(PALETTE))
        if first.code == second.code or first.style != second.style:
            continue
        if colour in (heldout_colour(first), heldout_colour(second)) or is_heldout_pair(first, second) != heldout:
            continue
        yield compose_pair(first, second, relation, colour, seed, f"pair-{k:06d}")


def _all_groups(objects: Sequence[Emoji], draws: int, seed: int, heldout: bool) -> Iterator[Scene]:
    for k in range(draws if objects else 0):
        rng = random.Random(hashed(seed, "groups", k))
        emoji, number, colour = _pick(rng, objects), _pick(rng, list(NUMBERS)), _pick(rng, list(PALETTE))
        if colour != heldout_colour(emoji) and (number == heldout_number(emoji)) == heldout:
            yield compose_group(emoji, number, colour, seed, f"group-{k:06d}")


def _pick(rng: random.Random, choices: Sequence[Any]) -> Any:
    return choices[int(rng.random() * len(choices))]


def _phrase(subject: str, colour: str, wording: float, comma: str = "") -> str:
    behind = background(colour)
    if wording < 0.5:
        return f"{subject}{comma} on {behind}"
    if wording < 0.7:
        return f"{subject}, {colour} background"
    if wording < 0.85:
        return f"{behind} with {subject}"
    return f"a drawing of {subject}, {colour} background"
