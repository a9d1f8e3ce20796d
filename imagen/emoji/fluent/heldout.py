"""Which combinations training never shows. By hashes that know no seed, so every data set keeps the same ones out."""

from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.scene import NUMBERS

PEOPLE_SHARE = 6  # one in so many combinations of role, gender and skin tone


def heldout_colour(drawing: Drawing) -> str:
    """The colour of PALETTE that training never shows behind `drawing`: 1/12 of all combinations."""
    return list(PALETTE)[hashed("fluent colour", drawing.icon) % len(PALETTE)]


def is_heldout_person(drawing: Drawing) -> bool:
    """Whether training never shows this person, on any background: a combination of role, gender and skin tone."""
    return drawing.role is not None and hashed("fluent person", drawing.combination) % PEOPLE_SHARE == 0


def is_heldout_pair(first: Drawing, second: Drawing) -> bool:
    """Whether training never shows the two together: one pair in eight."""
    return hashed("fluent pair", *sorted((first.icon, second.icon))) % 8 == 0


def heldout_number(drawing: Drawing) -> int:
    """The one of NUMBERS that training never shows of `drawing`."""
    return list(NUMBERS)[hashed("fluent number", drawing.icon) % len(NUMBERS)]
