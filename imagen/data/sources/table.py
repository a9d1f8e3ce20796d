"""Read CSV, TSV and JSON Lines: one pair per row, with a caption column and a column of image paths or base64."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.columns import Columns, common, find_columns, identified
from imagen.data.sources.files import COMPRESSED, files_below, has_files, metadata_folders, walk
from imagen.data.sources.joining import RepeatedImages, Row, group_adjacent
from imagen.data.sources.lines import BROKEN_GZIP, Split, TextFiles, open_lines, single_lines
from imagen.data.sources.quotes import UnclosedQuote, cells_of, split_rows
from imagen.data.sources.values import RecordError, no_records_error, printable, safe_key
from imagen.errors import UserError
from imagen.pictures.names import LIKE_PICTURES, ending

_BOM = b"\xef\xbb\xbf"
# Of JSON lines, read to find the columns. Reading stops after 100 lines if they identify the columns.
_MOST_LINES, _MOST_BYTES = 10_000, 1 << 22


class _Table:
    """A table in one file, or in all files below a folder that end in `suffix`; columns may differ between files.

    `.gz` may follow the suffix; such a file is one part. A key is the number of the row's first line, preceded by the
    number of its file if there are several. Paths of images are relative to their table's folder. Images beside or
    below a table named metadata that it does not list are records with a problem.
    """

    has_columns = True
    suffix: ClassVar[str]

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self.root = path if path.is_dir() else path.parent
        endings = (self.suffix, *(self.suffix + ending for ending in COMPRESSED))
        names = files_below(path, endings) if path.is_dir() else [path.name]
        if options.metadata_only:
            names = [name for name in names if name.rpartition("/")[2].lower() == f"metadata{self.suffix}"]
        self.files = TextFiles(self.root, names, options.records_per_part)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        endings = (cls.suffix, f"{cls.suffix}.gz")
        if not path.is_dir():
            return path.name.lower().endswith(endings)
        return has_files(path, endings) or bool(metadata_folders(path, endings))

    def parts(self) -> list[Part]:
        parts: list[Part] = []
        repeats = RepeatedImages()
        described = metadata_folders(self.path, (self.suffix,)) if self.path.is_dir() else set()
        needs_images = self.options.join_rows or bool(described)
        for number, name in enumerate(self.files.names):
            if name.lower().endswith(COMPRESSED) and not name.endswith(".gz"):
                raise UserError(f"{printable(self.root / name)} is compressed; unpack it, or move it away")
            header, lines, start = self._head(name)
            columns = self._columns(header, name)
            visit = partial(self._add_image, repeats, number, header, columns) if needs_images else None
            parts += self.files.parts(name, self._split(len(header)), start=start, line=1 + lines, visit=visit)
        if not parts:
            raise no_records_error(self.path, "rows")
        if self.options.join_rows:
            repeats.annotate(parts, self.files.names)
        unnamed = list(self._unnamed(repeats)) if described and self.options.images is None else []
        count = self.options.records_per_part
        return parts + [{"unnamed": unnamed[i : i + count]} for i in range(0, len(unnamed), count)]

    def _unnamed(self, repeats: RepeatedImages) -> Iterator[str]:
        """Yield images that no row names, for a source with tables of its images, such as metadata.csv."""
        named, root = repeats.pictures(), os.path.abspath(self.path)
        for name, _ in walk(self.path, lambda names: None):
            paths = (os.fsencode(name), os.fsencode(os.path.join(root, name)))
            if ending(name) in LIKE_PICTURES and named.isdisjoint(map(hash, paths)):
                yield name

    def _add_image(
        self,
        repeats: RepeatedImages,
        number: int,
        header: list[str],
        columns: Columns,
        lines: list[bytes],
        start: int,
        line: int,
    ) -> None:
        """Add the image of a row of file `number` to `repeats`."""
        try:
            cells = self._row(lines, header)
        except RecordError:
            return
        if cells is not None:
            repeats.add(columns.picture(cells, self._below(self.files.names[number])), number, start, line)

    def read(self, part: Part) -> Iterator[Record]:
        if "unnamed" in part:
            for name in part["unnamed"]:
                problem = ("missing caption", f"no row of a {self.suffix} table names it")
                key = safe_key(name.rpartition(".")[0], name, is_free=False)
                yield Record(key=key, origin=printable(name), problem=problem)
            return
        table = cache(self._table)
        header, columns = table(part["file"])
        folder, below = os.path.dirname(part["file"]), self._below(part["file"])

        def picture(found: tuple[int, Row | Record]) -> bytes | None:
            return columns.picture(found[1].cells, below) if isinstance(found[1], Row) else None

        rows = self._rows(part, header)
        # A .gz file was not read when parts were listed.
        is_unread = part["end"] is None and self.options.join_rows
        groups = group_adjacent(rows, picture) if is_unread else ([row] for row in rows)
        for group in groups:
            found = [row for _, row in group]
            for name, start, line in part.get("again", {}).get(str(group[0][0]), ()):
                found.append(self._other(name, start, line, picture(group[0]), columns, table))
            yield from (row for row in found if isinstance(row, Record))
            if good := [row for row in found if isinstance(row, Row)]:
                yield from columns.records(good, self.options.images or self.root / folder)

    def files_of(self, part: Part) -> list[Path]:
        return [self.root / part["file"]] if "file" in part else []

    def _table(self, name: str) -> tuple[list[str], Columns]:
        header, *_ = self._head(name)
        return header, self._columns(header, name)

    def _rows(self, part: Part, header: list[str]) -> Iterator[tuple[int, Row | Record]]:
        """Yield (line, row or record with a problem), without rows that were joined to an earlier row."""
        skipped = set(part.get("skip", ()))
        next_line = part["line"]
        try:
            for line, lines in self.files.read(part, self._split(len(header))):
                if line not in skipped:
                    for row in self._of_lines(part, line, lines, header):
                        yield line, row
                next_line = line + len(lines)
        except BROKEN_GZIP as error:
            key, origin = self.files.name(part, next_line)
            problem = ("unreadable file", f"gzip: {error}")
            yield next_line, Record(key=key, origin=f"{origin} and all after it", problem=problem)

    def _other(
        self,
        name: str,
        start: int,
        line: int,
        picture: bytes | None,
        columns: Columns,
        table: Callable[[str], tuple[list[str], Columns]],
    ) -> Row | Record:
        """Read a later row with the same image, from any file, with its columns renamed to `columns`."""
        header, theirs = table(name)
        lines = self.files.read_at(name, start, self._split(len(header)))
        part = {"key": self.files.prefix(name), "file": name}
        row = next(self._of_lines(part, line, lines, header), None) if lines else None
        if isinstance(row, Row) and theirs.picture(row.cells, self._below(name)) == picture:
            names = {theirs.caption: columns.caption, theirs.image: columns.image}
            return Row(row.key, row.origin, {names.get(column, column): cell for column, cell in row.cells.items()})
        key, origin = self.files.name(part, line)
        return Record(key=key, origin=origin, problem=("unreadable file", "it has changed since it was listed"))

    def _of_lines(self, part: Part, line: int, lines: list[bytes], header: list[str]) -> Iterator[Row | Record]:
        """Yield the row; nothing for a blank line, and one problem per line inside an unclosed quote."""
        key, origin = self.files.name(part, line)
        try:
            cells = self._row(lines, header)
            if cells is not None:
                yield Row(key, origin, cells)
        except UnclosedQuote as error:
            for number in range(len(lines)):
                key, origin = self.files.name(part, line + number)
                yield Record(key=key, origin=origin, problem=error.problem)
        except RecordError as error:
            yield Record(key=key, origin=origin, problem=error.problem)

    def _columns(self, header: list[str], name: str) -> Columns:
        return find_columns(header, self.options, self.root / name)

    def _below(self, name: str) -> str:
        """Return the folder of a table's images relative to that of all images."""
        return os.path.dirname(name) if self.options.images is None else ""

    def _head(self, name: str) -> tuple[list[str], int, int]:
        try:
            return self._header(self.root / name)
        except BROKEN_GZIP as error:
            raise UserError(
                f"{printable(self.root / name)} is not a complete gzip file ({error}); copy it again"
            ) from None

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        """Return the columns, and the numbers of lines and bytes before the first row."""
        raise NotImplementedError

    def _split(self, columns: int) -> Split:
        raise NotImplementedError

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        """Return the cells by column; None for a blank line. Raises RecordError for a malformed row."""
        raise NotImplementedError


class Csv(_Table):
    """Comma-separated values with a header row, UTF-8, quoted as spreadsheets and pandas do."""

    suffix = ".csv"
    delimiter: ClassVar[str] = ","

    def _columns(self, header: list[str], name: str) -> Columns:
        return replace(super()._columns(header, name), lists_are_text=True)

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        with open_lines(file) as lines:
            first = next(iter(self._split(0)(iter(lines))), [b""])
        if first[0].startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{printable(file)} is UTF-16; save it as UTF-8")
        try:
            header = cells_of([first[0].removeprefix(_BOM), *first[1:]], self.delimiter, 0)
        except RecordError as error:
            raise UserError(f"{printable(file)} has no header row ({error.problem[1]}); add one") from None
        if not any(header):
            raise UserError(f"{printable(file)} begins with an empty line; put the column names there")
        return header, len(first), sum(map(len, first))

    def _split(self, columns: int) -> Split:
        return lambda lines: split_rows(lines, self.delimiter, columns)

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        cells = self._plain_cells(lines) or cells_of(lines, self.delimiter, len(header))
        if not cells:
            return None
        # A short row lacks its last columns; but if it has several lines, a quote may have joined rows.
        if len(cells) > len(header) or (len(cells) < len(header) and len(lines) > 1):
            raise RecordError("broken row", f"{len(cells)} columns where the header has {len(header)}")
        return dict(zip(header, cells, strict=False))

    def _plain_cells(self, lines: list[bytes]) -> list[str] | None:
        """Split a line without quotes and special characters, faster than `cells_of`; None for other lines."""
        line = lines[0].rstrip(b"\r\n")
        if not line or b'"' in line or b"\r" in line or b"\0" in line or not line.isascii():
            return None
        return line.decode().split(self.delimiter)


class Tsv(Csv):
    """Tab-separated values, otherwise as CSV."""

    suffix = ".tsv"
    delimiter = "\t"


class JsonLines(_Table):
    """One JSON object per line. The columns are the names in the first objects, which may differ."""

    suffix = ".jsonl"

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        counts: Counter[str] = Counter()  # of values that are not null, in the order of their first object
        size = 0
        with open_lines(file) as lines:
            for number, line in enumerate(lines):
                with suppress(RecordError):
                    for name, value in (self._row([line], []) or {}).items():
                        counts[name] += value is not None
                size += len(line)
                if number >= _MOST_LINES or (
                    (number >= 100 or size > _MOST_BYTES) and identified(counts, self.options)
                ):
                    break
        if not counts:
            raise UserError(
                f"{printable(file)} contains no JSON object in its first {_MOST_LINES:,} lines; "
                "give another path or --format"
            )
        return common(counts, self.options), 0, 0

    def _split(self, columns: int) -> Split:
        return single_lines

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        line = lines[0].removeprefix(_BOM).strip()
        if not line:
            return None
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise RecordError("broken row", f"not UTF-8 (byte {error.start + 1})") from None
        except (ValueError, RecursionError) as error:
            raise RecordError("broken row", f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise RecordError("broken row", "not a JSON object")
        return row


READERS: dict[str, Reader] = {"csv": Csv, "tsv": Tsv, "jsonl": JsonLines}
