"""Read drawings of other styles from iconify JSON files, such as that of the npm package `@iconify-json/noto`.

Such a file names each drawing after its Unicode name ("red-apple") and contains the body of an SVG for it:
https://iconify.design/docs/types/iconify-json.html
"""

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from imagen.emoji.openmoji import ATTRIBUTION, LICENCE, SOURCE, Emoji, Style, bounding_box, rasterise, svg, unicode_name
from imagen.errors import UserError
from imagen.files import read_json


class Icon(NamedTuple):
    """A drawing of an iconify file."""

    view: str  # view box, "0 0 128 128": left, top, width, height
    body: str  # SVG elements


def styled(emojis: tuple[Emoji, ...] | list[Emoji], style: Style) -> list[Emoji]:
    """Return, in the given style, those `emojis` that the style's file contains.

    Raises UserError if the file cannot be read, is not iconify JSON, or contains none of them.
    """
    found = icons(style.file)
    available = [emoji._replace(style=style) for emoji in emojis if _slug(emoji) in found]
    if not available:
        raise UserError(f"{style.file} has none of the {len(emojis)} objects, for example no {_slug(emojis[0])!r}")
    return available


def inner_svg(emoji: Emoji) -> tuple[str, str]:
    """Return the view box of a drawing and the SVG elements inside it."""
    if emoji.style is None:
        return "0 0 72 72", svg(emoji.code)
    return icons(emoji.style.file)[_slug(emoji)]


@cache
def drawing_box(emoji: Emoji) -> tuple[float, float, float, float]:
    """Return a box (left, top, right, bottom) that encloses the drawing, in fractions of its square."""
    view, inner = inner_svg(emoji)
    element = f'<svg xmlns="http://www.w3.org/2000/svg" width="72" height="72" viewBox="{view}">{inner}</svg>'
    name = emoji.code if emoji.style is None else f"{_slug(emoji)} in {emoji.style.file}"
    return bounding_box(rasterise(svg(emoji.code) if emoji.style is None else element), name)


def credit(style: Style | None) -> dict[str, str]:
    """Return the source, licence and attribution of a style, as given in its file."""
    if style is None:
        return {"source": SOURCE, "licence": LICENCE, "attribution": ATTRIBUTION}
    beside = Path(style.file).with_name("info.json")  # where iconify's packages store it
    info = _dict_or_empty(_read(style.file).get("info"))
    info = info or _dict_or_empty(read_json(beside) if beside.is_file() else None)
    licence, author = _dict_or_empty(info.get("license")), _dict_or_empty(info.get("author"))
    return {
        "source": str(info.get("name", style.name)),
        "licence": str(licence.get("spdx") or licence.get("title") or "not said"),
        "attribution": str(author.get("name", "not said")),
    }


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@cache
def icons(file: str) -> dict[str, Icon]:
    """Return the drawings of an iconify JSON file by name, including aliases."""
    value = _read(file)
    size = {"left": 0, "top": 0, "width": 16, "height": 16} | {
        key: value[key] for key in ("left", "top", "width", "height") if key in value
    }
    found: dict[str, Icon] = {}
    try:
        for name, icon in value["icons"].items():
            box = size | icon
            view = " ".join(f"{float(box[key]):g}" for key in ("left", "top", "width", "height"))
            found[name] = Icon(view, icon["body"])
        for name, alias in value.get("aliases", {}).items():
            if set(alias) == {"parent"} and alias["parent"] in found:  # other aliases are rotated or mirrored
                found.setdefault(name, found[alias["parent"]])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not an iconify JSON file: {type(error).__name__} {error}") from None
    return found


@cache
def _read(file: str) -> dict[str, Any]:
    value = read_json(file, most=2**29)  # such a file contains thousands of drawings
    if not isinstance(value, dict) or not isinstance(value.get("icons"), dict):
        raise UserError(f"{file} is not an iconify JSON file: it lacks 'icons'")
    return value


@cache
def _slug(emoji: Emoji) -> str:
    """Return the name of a drawing in iconify files, such as "red-apple"."""
    return _ascii(unicode_name(emoji.code).lower()).replace("'", "").replace(".", "").replace(" ", "-")


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
