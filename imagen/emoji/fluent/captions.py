"""Write captions in several natural wordings.

A caption names the drawing and the background, and the size and position if they are not the defaults. `wording` in
[0, 1) selects the phrase; 0 gives the plain one, "a woman astronaut with dark skin on a blue background".
"""

from imagen.emoji.fluent.background import Background
from imagen.emoji.fluent.catalogue import Drawing
from imagen.emoji.openmoji import article
from imagen.emoji.scene import NUMBERS, RELATIONS, plural
from imagen.emoji.single import PLACES

_ADJECTIVES = {"man": "male", "woman": "female"}


def subject(drawing: Drawing, size: str = "", wording: float = 0.0) -> str:
    """Return the name of the drawing without an article, such as "small octopus", "woman astronaut with dark skin".

    size: an adjective, or "". The skin tone of a person, if any, comes before or after the noun. If no
    people without a gender are selected, one caption in seven leaves it out.
    """
    size = f"{size} " if size else ""
    if drawing.role is None:
        return size + drawing.name
    noun = drawing.name
    if drawing.gender is not None and (drawing.neutral or wording * 11 % 1 < 0.85):
        adjective = wording * 7 % 1 >= 0.85 and not noun.startswith("person ")
        noun = f"{_ADJECTIVES[drawing.gender] if adjective else drawing.gender} {noun.removeprefix('person ')}"
    if drawing.tone is None:
        return f"{size}{noun}" + (" with yellow skin" if wording * 3 % 1 >= 0.7 else "")
    if wording * 3 % 1 < 0.7:
        return f"{size}{noun} with {drawing.tone} skin"
    return f"{size}{drawing.tone}-skinned {noun}"


def single(
    drawing: Drawing, background: Background, size: str = "", place: str = "center", wording: float = 0.0
) -> str:
    """Return a caption of one drawing. size: "" or "small"; place: a name in PLACES."""
    bare, where, behind = subject(drawing, size, wording), PLACES[place][2], background.phrase
    named = with_article(drawing, bare)
    if wording < 0.4:
        return f"{named} {where}, on {behind}" if where else f"{named} on {behind}"
    if wording < 0.6:
        return ", ".join(filter(None, (bare, where, background.words)))
    if wording < 0.7:
        return f"{behind} with {named} {where}".strip()
    if wording < 0.8:
        return f"{named} {where}".strip() + f" in front of {behind}"
    kind = "an emoji" if wording < 0.9 else "a picture"
    return f"{kind} of {named} {where}".strip() + f", {background.words}"


def pair(first: Drawing, second: Drawing, relation: str, background: Background, wording: float = 0.0) -> str:
    """Return a caption such as "a horse to the left of a bus, on a blue background"."""
    words = RELATIONS[relation][2]
    one, other = subject(first, wording=wording), subject(second, wording=wording)
    named = f"{with_article(first, one)} {words} {with_article(second, other)}"
    if wording < 0.5:
        return f"{named}, on {background.phrase}"
    if wording < 0.7:
        return f"{one} {words} {other}, {background.words}"
    if wording < 0.85:
        return f"{background.phrase} with {named}"
    return f"a picture of {named}, {background.words}"


def group(drawing: Drawing, number: int, background: Background, wording: float = 0.0) -> str:
    """Return a caption such as "three horses on a blue background"."""
    many = f"{NUMBERS[number]} {plural(drawing)}"
    if wording < 0.5:
        return f"{many} on {background.phrase}"
    if wording < 0.7:
        return f"{many}, {background.words}"
    if wording < 0.85:
        return f"{background.phrase} with {many}"
    return f"a picture of {many}, {background.words}"


def with_article(drawing: Drawing, bare: str) -> str:
    """Return `bare` with its article: "a small octopus", "an astronaut", "cherries", "the Statue of Liberty"."""
    if drawing.role is None and drawing.article not in ("a ", "an "):
        return drawing.article + bare
    return article(bare.split()[0]) + bare if bare != drawing.name else drawing.article + bare
