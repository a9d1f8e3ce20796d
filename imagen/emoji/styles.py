"""Further styles of drawing, from iconify's JSON files (`@iconify-json/noto` and the like): FILE=STYLE.

Such a file names its drawings after Unicode's names ("red-apple"), and holds the body of an SVG for each:
https://iconify.design/docs/types/iconify-json.html
"""

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from imagen.emoji.openmoji import ATTRIBUTION, LICENCE, SOURCE, Emoji, Style, drawn_box, rasterise, svg, unicode_name
from imagen.errors import UserError
from imagen.files import read_json


class Icon(NamedTuple):
    view: str  # "0 0 128 128": left, top, width, height of what is shown
    body: str  # SVG elements


def styled(emojis: tuple[Emoji, ...] | list[Emoji], style: Style) -> list[Emoji]:
    """Those of `emojis` that the file of `style` has, in that style.

    UserError if the file cannot be read, is no iconify JSON, or has none of them.
    """
    found = icons(style.file)
    there = [emoji._replace(style=style) for emoji in emojis if _slug(emoji) in found]
    if not there:
        raise UserError(f"{style.file} has none of the {len(emojis)} objects, {_slug(emojis[0])!r} for one")
    return there


def inner_svg(emoji: Emoji) -> tuple[str, str]:
    """The view box of a drawing and the SVG elements to show in it."""
    if emoji.style is None:
        return "0 0 72 72", svg(emoji.code)
    return icons(emoji.style.file)[_slug(emoji)]


@cache
def box_of(emoji: Emoji) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) that encloses what is drawn, in fractions of the drawing's square."""
    view, inner = inner_svg(emoji)
    element = f'<svg xmlns="http://www.w3.org/2000/svg" width="72" height="72" viewBox="{view}">{inner}</svg>'
    where = emoji.code if emoji.style is None else f"{_slug(emoji)} in {emoji.style.file}"
    return drawn_box(rasterise(svg(emoji.code) if emoji.style is None else element), where)


def credit(style: Style | None) -> dict[str, str]:
    """Source, licence and attribution of a style, as its file says."""
    if style is None:
        return {"source": SOURCE, "licence": LICENCE, "attribution": ATTRIBUTION}
    beside = Path(style.file).with_name("info.json")  # iconify's packages keep it there
    info = _dict(_read(style.file).get("info")) or _dict(read_json(beside) if beside.is_file() else None)
    licence, author = _dict(info.get("license")), _dict(info.get("author"))
    return {
        "source": str(info.get("name", style.name)),
        "licence": str(licence.get("spdx") or licence.get("title") or "not said"),
        "attribution": str(author.get("name", "not said")),
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@cache
def icons(file: str) -> dict[str, Icon]:
    """The drawings of an iconify JSON file by name, its aliases included."""
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
            if set(alias) == {"parent"} and alias["parent"] in found:  # the others are turned or mirrored
                found.setdefault(name, found[alias["parent"]])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not an iconify JSON file: {type(error).__name__} {error}") from None
    return found


@cache
def _read(file: str) -> dict[str, Any]:
    value = read_json(file, most=2**29)  # thousands of drawings
    if not isinstance(value, dict) or not isinstance(value.get("icons"), dict):
        raise UserError(f"{file} is not an iconify JSON file: it has no 'icons'")
    return value


@cache
def _slug(emoji: Emoji) -> str:
    """The name that iconify's files give a drawing: "red-apple"."""
    return _ascii(unicode_name(emoji.code).lower()).replace("'", "").replace(".", "").replace(" ", "-")


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
