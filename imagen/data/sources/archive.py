"""Read a zip of images without unpacking it: captions beside the images, or in tables such as metadata.csv."""

import csv
import io
import json
import posixpath
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen.data.sources.base import Options, Part, Reader, Record, divide
from imagen.data.sources.columns import find_columns
from imagen.data.sources.folder import CAPTIONS
from imagen.data.sources.values import (
    MOST_BYTES,
    Captions,
    RecordError,
    captions_of,
    captions_of_json,
    no_records_error,
    printable,
    safe_key,
    texts_of_json,
)
from imagen.errors import UserError
from imagen.files import open_regular
from imagen.pictures.names import ending, is_picture

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
_TABLES = ("csv", "tsv", "jsonl")


class Zip:
    """A file *.zip. Its members are read in place; nothing is written to a disk, whatever their names are.

    As in a folder, KEY.jpg has its caption in KEY.txt, KEY.caption, KEY.text or KEY.json. If the archive has tables
    named metadata (csv, tsv, jsonl), or a single table and no caption files, captions come from the tables, whose paths
    are relative to the table. Hidden files are skipped. A record's key is the image's path without its ending.
    """

    has_columns = True

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options

    @staticmethod
    def recognises(path: Path) -> bool:
        return not path.is_dir() and path.name.lower().endswith(".zip")

    def parts(self) -> list[Part]:
        with self._open() as archive:
            infos = archive.infolist()
            names = {number: info.filename for number, info in enumerate(infos) if _is_visible(info)}
            images = {number: name for number, name in names.items() if is_picture(name)}
            if not images:
                raise no_records_error(self.path, "images (jpg, png, webp, gif, bmp, tiff, ...)")
            beside = _captions_beside(names)
            tables = {number: name for number, name in names.items() if ending(name) in _TABLES}
            metadata = {n: name for n, name in tables.items() if _stem(posixpath.basename(name)).lower() == "metadata"}
            found = {number: beside.get(name) or beside.get(_stem(name)) for number, name in images.items()}
            if metadata or (len(tables) == 1 and not any(found.values())):
                records = self._described(archive, metadata or tables, images)
            else:
                records = [{"image": number, "text": text} for number, text in found.items()]
        counts = Counter(_stem(name) for name in images.values())
        for record in records:
            if record.get("image") is not None and counts[_stem(images[record["image"]])] > 1:
                record["twin"] = True
        return [{"records": list(some)} for some in divide(records, self.options)]

    def read(self, part: Part) -> Iterator[Record]:
        with self._open() as archive:
            infos = archive.infolist()
            for entry in part["records"]:
                number = entry.get("image")
                if number is None:
                    key = safe_key("row", entry["origin"], is_free=False)
                    yield Record(key=key, origin=entry["origin"], problem=tuple(entry["problem"]))
                    continue
                name = infos[number].filename
                key = safe_key(_stem(name), f"{number}/{name}", is_free="twin" not in entry)
                captions: Captions = (None,)
                try:
                    captions = self._captions(archive, infos, entry)
                    if "problem" in entry:
                        raise RecordError(*entry["problem"])
                    image = _member(archive, infos[number])
                    yield Record(
                        key=key, origin=printable(name), caption=captions[0], further=captions[1:], image=image
                    )
                except RecordError as error:
                    yield Record(key=key, origin=printable(name), caption=captions[0], problem=error.problem)

    def files_of(self, part: Part) -> list[Path]:
        return [self.path]

    def _captions(self, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], entry: dict[str, Any]) -> Captions:
        if "captions" in entry:
            return tuple(entry["captions"])
        if entry.get("text") is None:
            return (None,)
        info = infos[entry["text"]]
        data = _member(archive, info)
        return captions_of_json(data, printable(info.filename)) if ending(info.filename) == "json" else (data,)

    def _described(
        self, archive: zipfile.ZipFile, tables: dict[int, str], images: dict[int, str]
    ) -> list[dict[str, Any]]:
        """Return the records of the rows of `tables`, one per image, then images that no row names."""
        by_path = {posixpath.normpath(name): number for number, name in images.items()}
        found: dict[int, list[Any]] = {}
        problems: list[dict[str, Any]] = []
        for number, table in tables.items():
            rows = list(_rows(archive, archive.infolist()[number], self.path))
            columns = find_columns(list(dict.fromkeys(name for row in rows for name in row)), self.options, Path(table))
            for line, row in enumerate(rows, 1):
                origin, value = f"{printable(table)}, row {line}", row.get(columns.image)
                path = posixpath.normpath(posixpath.join(posixpath.dirname(table), str(value)))
                if not value or path not in by_path:
                    why = ("broken row", "no image") if not value else ("missing file", f"{path} is not in the archive")
                    problems.append({"origin": origin, "problem": why})
                    continue
                cell = row.get(columns.caption)
                try:
                    new = captions_of(texts_of_json(cell) or cell)
                except RecordError as error:
                    problems.append({"origin": origin, "problem": error.problem})
                    continue
                known = found.setdefault(by_path[path], [])
                known += [caption for caption in new if caption not in known]
        records: list[dict[str, Any]] = [
            {"image": number, "captions": captions or [None]} for number, captions in found.items()
        ]
        names = ", ".join(map(printable, tables.values()))
        unnamed = {"problem": ("missing caption", f"no row of {names} names it")}
        return [*records, *problems, *({"image": number, **unnamed} for number in images if number not in found)]

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(open_regular(self.path))
        except _BROKEN as error:
            raise UserError(f"{printable(self.path)} is not a complete zip file ({error}); copy it again") from None


def _is_visible(info: zipfile.ZipInfo) -> bool:
    parts = info.filename.split("/")
    return not info.is_dir() and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _captions_beside(names: dict[int, str]) -> dict[str, int]:
    """Return the caption files by the path of their image, with or without its ending."""
    found: dict[str, int] = {}
    for kind in (*CAPTIONS, "json"):
        for number, name in names.items():
            if ending(name) == kind:
                found.setdefault(_stem(name), number)
    return found


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a member. Raises RecordError if it is too large, encrypted or damaged."""
    name = printable(info.filename)
    try:
        with archive.open(info) as file:
            data = file.read(MOST_BYTES + 1)  # the size in the header may be wrong
    except _BROKEN as error:
        raise RecordError("unreadable file", f"{name}: {error}") from None
    if len(data) > MOST_BYTES:
        raise RecordError("unreadable file", f"{name} has more than {MOST_BYTES:,} bytes")
    return data


def _rows(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in the archive. Raises UserError if it cannot be read."""
    where = f"{printable(path)}: {printable(info.filename)}"
    try:
        text = io.StringIO(_member(archive, info).decode("utf-8-sig", "replace"), newline="")
    except RecordError as error:
        raise UserError(f"{where} cannot be read: {error.problem[1]}") from None
    kind = ending(info.filename)
    if kind == "jsonl":
        for number, line in enumerate(text, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{where}, line {number} is not a JSON object")
                yield row
        return
    csv.field_size_limit(min(sys.maxsize, MOST_BYTES))
    try:
        for row in csv.DictReader(text, delimiter="\t" if kind == "tsv" else ","):
            yield {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise UserError(f"{where} is not a table ({error})") from None


READERS: dict[str, Reader] = {"zip": Zip}
