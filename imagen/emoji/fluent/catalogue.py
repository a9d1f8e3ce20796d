"""List the drawings of Fluent Emoji with their English names, and the roles, genders and tones of people.

The drawings are Microsoft's (MIT): `icons.json` of the npm package `@iconify-json/fluent-emoji`. Names, groups and
subgroups are Unicode's: `en/data.json` and `meta/groups.json` of the npm package `emojibase-data` (MIT), whose
`en/shortcodes/emojibase.json` lists the words by which people search for them. A drawing is identified by its Unicode
name and its skin tone, "woman-astronaut-dark". The names of people contain role, gender and tone: if there are both
"man X" and "woman X", X is a role.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from imagen.emoji.openmoji import RENAMED, article
from imagen.emoji.styles import icons
from imagen.errors import UserError
from imagen.files import read_json

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # in Unicode's order; None means the default yellow
GENDERS = ("man", "woman")  # None means a person of unspecified gender
PERSON = "person"  # names the unspecified gender where there is a choice of genders
PEOPLE = "people-body"
THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")  # groups of nameable things
FACES = "smileys-emotion"
_GENDERED_LABEL = re.compile("(man|woman|person) (.+)")
# 24 variants of one clock face; mirrored drawings; names that do not say what is drawn
_EXCLUDED = re.compile("thirty$|o'clock$|: facing right$|low volume$|with yen$|(unlocked|foggy|camping)$")


class Drawing(NamedTuple):
    """A drawing, its name and its properties."""

    icon: str  # its name in icons.json, "octopus", "woman-astronaut-dark"
    name: str  # "octopus", "astronaut", "person wearing turban": without gender and tone
    article: str  # of the name: "an ", "a ", "the ", or "" for plurals and mass nouns
    group: str  # "animals-nature"
    subgroup: str  # "animal-marine"
    role: str | None = None  # of people drawn both as man and as woman: "astronaut", "wearing turban"
    gender: str | None = None  # a name in GENDERS
    tone: str | None = None  # a name in TONES
    neutral: bool = True  # people without a gender are selected, too; if not, captions may leave the gender out
    words: int = 1  # number of words of the name, or 1 if one of them alone is a shortcode: "apple" for "red apple"

    @property
    def combination(self) -> str:
        """Role, gender and tone of a person, or the name of another drawing."""
        return self.name if self.role is None else f"{self.role}/{self.gender or PERSON}/{self.tone or 'yellow'}"


class Source(NamedTuple):
    """Paths of the two unpacked packages."""

    icons: str  # path of icons.json of @iconify-json/fluent-emoji
    names: str  # path of the folder of emojibase-data, which contains en/ and meta/


@cache
def catalogue(source: Source) -> tuple[Drawing, ...]:
    """Return all drawings of things, faces and people in Unicode's order, without signs, flags and clock faces.

    Mirrored people are also excluded. Raises UserError if a file is missing or does not have the expected content.
    """
    found, available = [], icons(source.icons)
    entries = list(_entries(source))
    gendered = {match.groups() for entry in entries if (match := _GENDERED_LABEL.fullmatch(entry["label"]))}
    roles = {role for _, role in gendered if ("man", role) in gendered and ("woman", role) in gendered}
    for entry in entries:
        label, group, subgroup = entry["label"], entry["group"], entry["subgroup"]
        if group not in (*THINGS, FACES, PEOPLE) or _EXCLUDED.search(label):
            continue
        match = _GENDERED_LABEL.fullmatch(label)
        role = match[2] if match else label
        gender = match[1] if match and match[1] in GENDERS else None
        if group != PEOPLE or role not in roles:
            role = gender = None
            name = RENAMED.get(label, label)
        else:
            name = f"person {role}" if ("person", role) in gendered else role
        # Fluent has "person-superhero" where Unicode says "superhero".
        icon = next((icon for icon in (slug(label), f"person-{slug(label)}") if icon in available), None)
        if icon is None:
            continue
        words = 1 if entry["shortcodes"] & set(name.split()) else len(name.split())
        drawing = Drawing(icon, name, article(name), group, subgroup, role, gender, words=words)
        found.append(drawing)
        for tone in TONES if entry["tones"] else ():
            if f"{icon}-{tone}" in available:
                found.append(drawing._replace(icon=f"{icon}-{tone}", tone=tone))
    if not found:
        raise UserError(f"{source.icons} contains none of the drawings listed in {source.names}")
    return tuple(found)


def things(source: Source, words: int = 2) -> list[Drawing]:
    """Return the animals, plants, food, places, vehicles and objects that have at most `words` words."""
    return [each for each in catalogue(source) if each.group in THINGS and each.words <= words]


def faces(source: Source, words: int = 3) -> list[Drawing]:
    """Return the smileys and hearts with names of at most `words` words, without emotion symbols ("anger symbol")."""
    shown = [each for each in catalogue(source) if each.group == FACES and each.subgroup != "emotion"]
    return [each for each in shown if len(each.name.split()) <= words]


def people(
    source: Source, subgroups: Iterable[str] = ("person-role",), genders: Sequence[str] = (*GENDERS, PERSON)
) -> list[Drawing]:
    """Return the people of these subgroups whose role exists as man, woman and person with skin tones.

    genders: those that are returned. Raises UserError if there are none or others than "man", "woman" and "person".
    """
    if not genders or not {*genders} <= {*GENDERS, PERSON}:
        raise UserError(f"genders {list(genders)}: give some of {', '.join((*GENDERS, PERSON))}")
    wanted = set(subgroups)
    found = [each for each in catalogue(source) if each.role is not None and each.subgroup in wanted]
    with_tones = {(each.role, each.gender) for each in found if each.tone is not None}
    return [
        each._replace(neutral=PERSON in genders)
        for each in found
        if (each.gender or PERSON) in genders and all((each.role, gender) in with_tones for gender in (*GENDERS, None))
    ]


def slug(label: str) -> str:
    """Return the name of a drawing in iconify files: "Rescue worker's helmet" -> "rescue-workers-helmet"."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", re.sub("['.:!,]", "", plain)).strip("-")


def _entries(source: Source) -> Iterator[dict[str, Any]]:
    """Yield Unicode's emoji in its order: label, shortcodes, group and subgroup, and whether there are skin tones.

    Shortcodes that are labels of other emoji are left out: "cat" of "grinning cat".
    """
    folder = Path(source.names)
    groups, data = read_json(folder / "meta" / "groups.json"), read_json(folder / "en" / "data.json")
    codes = read_json(folder / "en" / "shortcodes" / "emojibase.json")
    try:
        labels = {entry["label"] for entry in data}
        for entry in sorted(data, key=lambda entry: entry.get("order", 0)):
            if "group" in entry:  # regional indicators have none
                found = codes.get(entry["hexcode"], [])
                codes_of = [found] if isinstance(found, str) else found
                yield {
                    "label": entry["label"].replace("’", "'"),
                    "shortcodes": {code for code in codes_of if code.isalpha() and code not in labels},
                    "group": groups["groups"][str(entry["group"])],
                    "subgroup": groups["subgroups"][str(entry["subgroup"])],
                    "tones": any(isinstance(skin.get("tone"), int) for skin in entry.get("skins", ())),
                }
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} does not contain emojibase-data: {type(error).__name__} {error}") from None
