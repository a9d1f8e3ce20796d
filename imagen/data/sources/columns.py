"""Which columns of a table hold the picture and the caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.data.sources.base import Options, Record
from imagen.data.sources.values import Trouble, as_caption, picture, printable
from imagen.errors import UserError, suggest

# Tried in this order, in any case.
CAPTIONS = ("caption", "text", "prompt", "title", "alt_text", "alt", "description", "top_caption")
IMAGES = (
    *("image", "image_base64", "image_bytes", "image_path", "image_file", "file_name", "filename", "file_path"),
    *("filepath", "file", "path", "img", "img_base64", "img_path", "base64", "jpg", "jpeg", "png", "webp"),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The two columns in use, by name."""

    image: str
    caption: str

    @property
    def is_base64(self) -> bool:
        """Whether text in the image column is a picture rather than the path of one: the column's name says so."""
        return any(word in self.image.lower() for word in ("base64", "b64"))

    def record(self, row: dict[str, Any], key: str, origin: str, folder: Path) -> Record:
        """The record of a row; `folder` is where its paths begin."""
        caption = None
        try:
            for name in (self.caption, self.image):
                if name not in row:
                    raise Trouble("broken row", f"no column {name!r}")
            caption = _caption(row[self.caption])
            image = picture(row[self.image], folder, is_base64=self.is_base64)
            return Record(key=key, origin=origin, caption=caption, image=image)
        except Trouble as trouble:
            return Record(key=key, origin=origin, caption=caption, problem=trouble.problem)


def _caption(cell: Any) -> str | bytes | None:
    if cell is None or isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise Trouble("broken row", f"the caption is of type {type(cell).__name__}, not text")
    return as_caption(cell)


def find_columns(names: Sequence[str], options: Options, table: Path) -> Columns:
    """Those that the user named, else the first of IMAGES and CAPTIONS that there is.

    UserError, naming the table's columns, if one is not there or none is found.
    """
    return Columns(
        image=_find(names, options.image_column, IMAGES, "image", table),
        caption=_find(names, options.caption_column, CAPTIONS, "caption", table),
    )


def _find(names: Sequence[str], named: str | None, usual: Sequence[str], what: str, table: Path) -> str:
    shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    if named is not None:
        if named not in names:
            raise UserError(f"{printable(table)} has no column {named!r}{suggest(named, names)}; it has {shown}")
        return named
    by_lower_case = {name.lower(): name for name in reversed(names)}  # the first of equals wins
    for candidate in usual:
        if candidate in by_lower_case:
            return by_lower_case[candidate]
    if what == "image" and "url" in by_lower_case:
        raise UserError(f"{printable(table)} holds addresses, not pictures; download them first, with img2dataset say")
    raise UserError(f"cannot tell the {what} column of {printable(table)} ({shown}); name it with --{what}-column")
