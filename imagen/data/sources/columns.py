"""Find the columns of a table that contain the image and the caption."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.data.sources.base import Options, Record
from imagen.data.sources.joining import Row
from imagen.data.sources.values import Captions, RecordError, captions_of, picture, printable, texts_of_json
from imagen.errors import UserError, suggest

# Common names in order of preference, compared in lower case.
CAPTIONS = (
    *("caption", "captions", "text", "texts", "prompt", "title", "alt_text", "alt", "description", "top_caption"),
    *("sentences", "raw"),
)
IMAGES = (
    *("image", "image_base64", "image_bytes", "image_path", "image_file", "file_name", "filename", "file_path"),
    *("filepath", "file", "path", "img", "img_base64", "img_path", "base64", "jpg", "jpeg", "png", "webp"),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the two columns in use."""

    image: str
    caption: str
    within: Path | None = None  # as in Options
    lists_are_text: bool = False  # whether a list of captions is JSON in a cell, as in CSV

    @property
    def is_base64(self) -> bool:
        """Whether text in the image column is a base64 image instead of a path, according to the column's name."""
        return any(word in self.image.lower() for word in ("base64", "b64"))

    def picture(self, cells: dict[str, Any], folder: str) -> bytes | None:
        """Return the identity of a row's image: its path or base64; None if the row has neither."""
        value = cells.get(self.image)
        if isinstance(value, dict) and not value.get("bytes"):
            value = value.get("path")
        if not isinstance(value, str) or not value:
            return None
        if not self.is_base64:
            value = os.path.join(folder, value)
            value = os.path.normpath(value) if "./" in value or "//" in value else value
        return value.encode("utf-8", "surrogatepass")

    def records(self, rows: Sequence[Row], folder: Path) -> Iterator[Record]:
        """Yield the record of rows with one image; `folder` is the base of the first row's path.

        A row without a caption, or with the caption of an earlier row, becomes a separate record with a problem.
        """
        leading: list[Row] = []
        captions: dict[str | bytes | None, str] = {}  # and where they are
        for row in rows:
            try:
                for name in (self.caption, self.image):
                    if name not in row.cells:
                        raise RecordError("broken row", f"no column {name!r}")
                cell = row.cells[self.caption]
                new = captions_of(texts_of_json(cell) or cell if self.lists_are_text else cell)
                if leading and new == (None,):
                    raise RecordError("missing caption", "none")
                if leading and all(caption in captions for caption in new):
                    raise RecordError("duplicate", f"the same image and caption as in {captions[new[0]]}")
            except RecordError as error:
                yield Record(key=row.key, origin=row.origin, problem=error.problem)
                continue
            leading.append(row)
            captions |= {caption: row.origin for caption in new if caption not in captions}
        if leading:
            yield self._record(leading, tuple(captions), folder)

    def _record(self, rows: Sequence[Row], captions: Captions, folder: Path) -> Record:
        key, origin = rows[0].key, rows[0].origin
        if len(rows) > 1:
            origin += f" and {len(rows) - 1} more with its image"
        try:
            image = picture(rows[0].cells[self.image], folder, is_base64=self.is_base64, within=self.within)
            return Record(key=key, origin=origin, caption=captions[0], further=captions[1:], image=image)
        except RecordError as error:
            return Record(key=key, origin=origin, caption=captions[0], problem=error.problem)


def identified(counts: Counter[str], options: Options) -> bool:
    """Return whether the non-null values per column, `counts`, suffice to identify the image and caption columns."""
    names = {name.lower() for name in counts}
    return (options.image_column in counts if options.image_column else not names.isdisjoint(IMAGES)) and (
        options.caption_column in counts if options.caption_column else not names.isdisjoint(CAPTIONS)
    )


def common(counts: Counter[str], options: Options) -> list[str]:
    """Return the names without those that are less than half as common as another candidate for the same column."""
    names = list(counts)
    for usual in (IMAGES, CAPTIONS):
        most = max((count for name, count in counts.items() if name.lower() in usual), default=0)
        names = [name for name in names if name.lower() not in usual or 2 * counts[name] >= most]
    named = (options.image_column, options.caption_column)
    return names + [name for name in counts if name in named and name not in names]


def find_columns(names: Sequence[str], options: Options, table: Path) -> Columns:
    """Return the columns that the user named, or the first of IMAGES and CAPTIONS in `names`.

    Raises UserError, naming the table's columns, if a column does not exist or none is found.
    """
    return Columns(
        image=_find(names, options.image_column, IMAGES, "image", table),
        caption=_find(names, options.caption_column, CAPTIONS, "caption", table),
        within=options.within,
    )


def _find(names: Sequence[str], named: str | None, usual: Sequence[str], what: str, table: Path) -> str:
    shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    if named is not None:
        if named in names:
            return named
        hint = suggest(named, names, f"it has {shown}")
        raise UserError(f"{printable(table)} has no column {named!r}{hint}{_delimiter_hint(names)}")
    by_lower_case = {name.lower(): name for name in reversed(names)}  # the first of equals wins
    for candidate in usual:
        if candidate in by_lower_case:
            return by_lower_case[candidate]
    if what == "image" and "url" in by_lower_case:
        raise UserError(
            f"{printable(table)} contains URLs, not images; download them first, for example by img2dataset"
        )
    if hint := _delimiter_hint(names):
        raise UserError(f"{printable(table)} has one column, {shown}{hint}")
    raise UserError(f"cannot identify the {what} column of {printable(table)} ({shown}); name it with --{what}-column")


def _delimiter_hint(names: Sequence[str]) -> str:
    """Return a hint for a table whose only column seems to contain another delimiter; "" for others."""
    mark = next((mark for mark in ";|\t," if mark in names[0]), None) if len(names) == 1 else None
    if mark is None:
        return ""
    return f"; cells seem to be separated by {mark!r}: " + (
        "name it .tsv, or give --format tsv" if mark == "\t" else "save it with commas"
    )
