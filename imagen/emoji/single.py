"""Compose images of one object; size, position and caption are a function of (object, colour, variant, seed)."""

import random
from dataclasses import dataclass
from typing import Any

from imagen.emoji.openmoji import Emoji, emojis
from imagen.emoji.picture import PALETTE, Picture, Placed, background, choose, hashed, in_style
from imagen.emoji.styles import credit

# Name: (fraction of samples, smallest and largest side of the drawing's square as a fraction of the image's side,
# fraction of the samples that are centred). A drawing fills about 5/6 of its square.
SIZES = {
    "small": (0.10, (0.38, 0.48), 0.25),
    "medium": (0.75, (0.64, 0.74), 0.80),
    "large": (0.15, (0.92, 1.04), 1.00),
}
CENTRED_SIZES = {"medium": (1.0, (0.86, 0.94), 1.0)}  # only large and centred, which a network learns in minutes
# Name: (direction in x, direction in y, words)
PLACES = {
    "center": (0, 0, ""),
    "left": (-1, 0, "on the left"),
    "right": (1, 0, "on the right"),
    "top": (0, -1, "at the top"),
    "bottom": (0, 1, "at the bottom"),
    "top left": (-1, -1, "in the top left corner"),
    "top right": (1, -1, "in the top right corner"),
    "bottom left": (-1, 1, "in the bottom left corner"),
    "bottom right": (1, 1, "in the bottom right corner"),
}
OBJECTS = 96  # default number of objects, which a small model can learn in an hour on two cores
_JITTER = 0.03  # maximum shift from the centre, as a fraction of the image's side


@dataclass(frozen=True, kw_only=True)
class Composition(Picture):
    """An image of one object. Lengths are fractions of the image's side."""

    emoji: Emoji
    size: str  # name in SIZES
    place: str  # name in PLACES
    side: float  # side of the drawing's square
    x: float  # centre of the square, 0 at the left
    y: float  # 0 at the top

    @property
    def placed(self) -> tuple[Placed, ...]:
        return (Placed(self.emoji, self.side, self.x, self.y),)

    @property
    def about(self) -> dict[str, Any]:
        source = credit(self.emoji.style)
        about = {
            "object": self.emoji.name,
            "code_point": self.emoji.code,
            "colour": self.colour,
            "size": self.size,
            "place": self.place,
            "side": round(self.side, 4),
            "x": round(self.x, 4),
            "y": round(self.y, 4),
            "source": source["source"],
            "licence": source["licence"],
        }
        return about if self.emoji.style is None else about | {"style": self.emoji.style.name}


def compose(emoji: Emoji, colour: str, variant: int = 0, seed: int = 0, *, centred: bool = False) -> Composition:
    """Return the image of `emoji` on `colour` for (seed, variant).

    centred: always large and centred; otherwise size and position are drawn from SIZES.
    """
    sizes = CENTRED_SIZES if centred else SIZES
    key = f"{emoji.code.lower()}-{colour}-{variant}" + (f"-{emoji.style.name}".replace(" ", "-") if emoji.style else "")
    rng = random.Random(hashed(seed, key))
    size = choose(rng, {name: share for name, (share, _, _) in sizes.items()})
    _, (smallest, largest), centre_share = sizes[size]
    other_share = (1 - centre_share) / (len(PLACES) - 1)
    place = choose(rng, {name: centre_share if name == "center" else other_share for name in PLACES})

    side = smallest + (largest - smallest) * rng.random()
    to_x, to_y, _ = PLACES[place]
    room = (1 - side) / 2  # distance from the centre at which the square touches the border
    x = 0.5 + to_x * room * (0.85 + 0.15 * rng.random()) + (0 if to_x else _JITTER * (2 * rng.random() - 1))
    y = 0.5 + to_y * room * (0.85 + 0.15 * rng.random()) + (0 if to_y else _JITTER * (2 * rng.random() - 1))
    return Composition(
        key=key,
        emoji=emoji,
        colour=colour,
        size=size,
        place=place,
        side=side,
        x=x,
        y=y,
        caption=in_style(caption(emoji, colour, size, place, wording=rng.random()), emoji),
    )


def caption(emoji: Emoji, colour: str, size: str = "medium", place: str = "center", wording: float = 0.0) -> str:
    """Return a caption that names the object and the colour, and the size and position if they are not the defaults.

    wording: in [0, 1), selects the phrase; 0 gives the plain one, "an octopus on a blue background".
    """
    adjective = "" if size == "medium" else f"{size} "
    if not adjective:
        bare, subject = emoji.name, emoji.article + emoji.name
    elif emoji.article:
        bare, subject = adjective + emoji.name, f"a {adjective}{emoji.name}"
    else:  # "large bread" is not idiomatic
        bare, subject = f"{adjective}drawing of {emoji.name}", f"a {adjective}drawing of {emoji.name}"
    where = PLACES[place][2]
    behind = background(colour)

    if wording < 0.5:
        return f"{subject} {where}, on {behind}" if where else f"{subject} on {behind}"
    if wording < 0.7:
        return ", ".join(filter(None, (bare, where, f"{colour} background")))
    if wording < 0.85:
        return f"{behind} with {subject} {where}".strip()
    if "drawing of" not in subject:
        subject = f"a drawing of {subject}"
    return f"{subject} {where}".strip() + f", {colour} background"


def heldout_colour(emoji: Emoji) -> str:
    """Return the colour of PALETTE that is held out for `emoji`; 1/12 of all combinations are held out."""
    return list(PALETTE)[hashed("heldout", emoji.code) % len(PALETTE)]


def objects(limit: int | None) -> list[Emoji]:
    """Return all objects, or a fixed selection of `limit` of them: shuffled, shortest names in words first."""
    shuffled = sorted(emojis(), key=lambda emoji: (len(emoji.name.split()), hashed("objects", emoji.code)))
    return shuffled if limit is None else shuffled[:limit]
