"""CSV, TSV and JSON Lines: one pair a row, with a caption column and a column of picture paths or base64."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from imagen.data.sources.base import Options, Part, Record
from imagen.data.sources.columns import Columns, find_columns
from imagen.data.sources.files import COMPRESSED, files_below, has_files
from imagen.data.sources.lines import BROKEN_GZIP, Split, TextFiles, open_lines, single_lines
from imagen.data.sources.quotes import Swallowed, cells_of, split_rows
from imagen.data.sources.values import Trouble, nothing, printable
from imagen.errors import UserError

_BOM = b"\xef\xbb\xbf"


class _Table:
    """A table in one file, or in all files below a folder that end in `suffix`, each with columns of its own.

    `.gz` may follow the suffix; such a file is one part. A key is the number of the row's line, after the number of
    its file where there are several. Paths of pictures begin at their table's folder.
    """

    has_columns = True
    suffix: ClassVar[str]

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self.root = path if path.is_dir() else path.parent
        endings = (self.suffix, *(self.suffix + ending for ending in COMPRESSED))
        self.files = TextFiles(
            self.root, files_below(path, endings) if path.is_dir() else [path.name], options.records_per_part
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        endings = (cls.suffix, f"{cls.suffix}.gz")
        return has_files(path, endings) if path.is_dir() else path.name.lower().endswith(endings)

    def parts(self) -> list[Part]:
        parts: list[Part] = []
        for name in self.files.names:
            if name.lower().endswith(COMPRESSED) and not name.endswith(".gz"):
                raise UserError(f"{printable(self.root / name)} is compressed; unpack it, or move it away")
            header, lines, start = self._head(name)
            self._columns(header, name)
            parts += self.files.parts(name, self._split(len(header)), start=start, line=1 + lines)
        if not parts:
            raise nothing(self.path, "rows")
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        name = part["file"]
        header, *_ = self._head(name)
        columns = self._columns(header, name)
        next_line = part["line"]
        try:
            for line, lines in self.files.read(part, self._split(len(header))):
                yield from self._records(part, line, lines, header, columns)
                next_line = line + len(lines)
        except BROKEN_GZIP as error:
            key, origin = self.files.name(part, next_line)
            yield Record(key=key, origin=f"{origin} and all after it", problem=("unreadable file", f"gzip: {error}"))

    def _records(
        self, part: Part, line: int, lines: list[bytes], header: list[str], columns: Columns
    ) -> Iterator[Record]:
        """The record of a row; none of a blank line, and one of each line where rows may have been swallowed."""
        key, origin = self.files.name(part, line)
        try:
            row = self._row(lines, header)
            if row is not None:
                yield columns.record(row, key, origin, (self.root / part["file"]).parent)
        except Swallowed as trouble:
            for number in range(len(lines)):
                key, origin = self.files.name(part, line + number)
                yield Record(key=key, origin=origin, problem=trouble.problem)
        except Trouble as trouble:
            yield Record(key=key, origin=origin, problem=trouble.problem)

    def _columns(self, header: list[str], name: str) -> Columns:
        return find_columns(header, self.options, self.root / name)

    def _head(self, name: str) -> tuple[list[str], int, int]:
        try:
            return self._header(self.root / name)
        except BROKEN_GZIP as error:
            raise UserError(f"{printable(self.root / name)} is no whole gzip file ({error}); copy it again") from None

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        """The columns, and how many lines and bytes stand before the first row."""
        raise NotImplementedError

    def _split(self, columns: int) -> Split:
        raise NotImplementedError

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        """The cells by column, None for a blank line; Trouble if they cannot be told."""
        raise NotImplementedError


class Csv(_Table):
    """Comma-separated values with a header row, UTF-8, quoted as spreadsheets and pandas do."""

    suffix = ".csv"
    delimiter: ClassVar[str] = ","

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        with open_lines(file) as lines:
            first = next(iter(self._split(0)(iter(lines))), [b""])
        if first[0].startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{printable(file)} is UTF-16; save it as UTF-8")
        try:
            header = cells_of([first[0].removeprefix(_BOM), *first[1:]], self.delimiter, 0)
        except Trouble as trouble:
            raise UserError(f"{printable(file)} has no header row ({trouble.problem[1]}); put one in front") from None
        return header, len(first), sum(map(len, first))

    def _split(self, columns: int) -> Split:
        return lambda lines: split_rows(lines, self.delimiter, columns)

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        cells = cells_of(lines, self.delimiter, len(header))
        if not cells:
            return None
        if len(cells) != len(header):
            raise Trouble("broken row", f"{len(cells)} columns where the header has {len(header)}")
        return dict(zip(header, cells, strict=True))


class Tsv(Csv):
    """The same with tabs."""

    suffix = ".tsv"
    delimiter = "\t"


class JsonLines(_Table):
    """One JSON object a line. The columns are the names in the first object."""

    suffix = ".jsonl"

    def _header(self, file: Path) -> tuple[list[str], int, int]:
        with open_lines(file) as lines:
            for _, line in zip(range(100), lines, strict=False):  # the first ones may be broken
                try:
                    row = self._row([line.removeprefix(_BOM)], [])
                except Trouble:
                    continue
                if row is not None:
                    return list(row), 0, 0
        raise UserError(f"{printable(file)} holds no JSON object in its first 100 lines; give another path or --format")

    def _split(self, columns: int) -> Split:
        return single_lines

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        line = lines[0].removeprefix(_BOM).strip()
        if not line:
            return None
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise Trouble("broken row", f"not UTF-8 (byte {error.start + 1})") from None
        except (ValueError, RecursionError) as error:
            raise Trouble("broken row", f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise Trouble("broken row", "not a JSON object")
        return row
