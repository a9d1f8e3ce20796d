"""Select the combinations that are held out from training.

The selection uses hashes that do not depend on a seed, so all data sets hold out the same combinations.
"""

from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.picture import PALETTE, hashed
from imagen.emoji.scene import NUMBERS

PEOPLE_SHARE = 6  # one in six combinations of role, gender and skin tone is held out


def heldout_colour(drawing: Drawing) -> str:
    """Return the colour of PALETTE that is held out for `drawing`; 1/12 of all combinations are held out."""
    return list(PALETTE)[hashed("fluent colour", drawing.icon) % len(PALETTE)]


def is_heldout_person(drawing: Drawing) -> bool:
    """Return whether this combination of role, gender and skin tone is held out, on every background."""
    return drawing.role is not None and hashed("fluent person", drawing.combination) % PEOPLE_SHARE == 0


def is_heldout_pair(first: Drawing, second: Drawing) -> bool:
    """Return whether this pair is held out. One in eight pairs is."""
    return hashed("fluent pair", *sorted((first.icon, second.icon))) % 8 == 0


def heldout_number(drawing: Drawing) -> int:
    """Return the count in NUMBERS that is held out for `drawing`."""
    return list(NUMBERS)[hashed("fluent number", drawing.icon) % len(NUMBERS)]
