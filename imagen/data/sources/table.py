"""CSV, TSV and JSON Lines: one pair a row, with a caption column and a column of picture paths or base64."""

import csv
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from imagen.data.sources.base import Options, Part, Record
from imagen.data.sources.columns import Columns, find_columns
from imagen.data.sources.lines import Split, TextFiles, open_lines, single_lines
from imagen.data.sources.values import Trouble, nothing, printable, visible_files
from imagen.errors import UserError

# A cell of base64 is far longer than the csv module's own limit of 128 KiB. The setting is the whole process's.
csv.field_size_limit(2**31 - 1)
_MOST_LINES, _MOST_BYTES = 256, 1 << 26  # of one row, beyond which its opening quote is taken for a stray one
_BOM = b"\xef\xbb\xbf"


class _Table:
    """A table in one file, or in all files below a folder that end in `suffix`, each with columns of its own.

    A key is the number of the row's line, after the number of its file where there are several. Paths of pictures
    begin at their table's folder.
    """

    has_columns = True
    suffix: ClassVar[str]

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self.root = path if path.is_dir() else path.parent
        found = visible_files(path, self.suffix) if path.is_dir() else [path]
        self.files = TextFiles(
            self.root, [str(file.relative_to(self.root)) for file in found], options.records_per_part
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any(path.glob(f"*{cls.suffix}")) if path.is_dir() else path.name.lower().endswith(cls.suffix)

    def parts(self) -> list[Part]:
        parts: list[Part] = []
        for name in self.files.names:
            header, lines, start = self._header(self.root / name)
            self._columns(header, name)
            parts += self.files.parts(name, self._split(len(header)), start=start, line=1 + lines)
        if not parts:
            raise nothing(self.path, "rows")
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        name = part["file"]
        header, *_ = self._header(self.root / name)
        columns = self._columns(header, name)
        folder = (self.root / name).parent
        for key, origin, lines in self.files.read(part, self._split(len(header))):
            try:
                row = self._row(lines, header)
            except Trouble as trouble:
                yield Record(key=key, origin=origin, problem=trouble.problem)
                continue
            if row is not None:
                yield columns.record(row, key, origin, folder)

    def _columns(self, header: list[str], name: str) -> Columns:
        return find_columns(header, self.options, self.root / name)

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
            header = _cells([first[0].removeprefix(_BOM), *first[1:]], self.delimiter)
        except Trouble as trouble:
            raise UserError(f"{printable(file)} has no header row ({trouble.problem[1]}); put one in front") from None
        return header, len(first), sum(map(len, first))

    def _split(self, columns: int) -> Split:
        return lambda lines: _rows(lines, self.delimiter, columns)

    def _row(self, lines: list[bytes], header: list[str]) -> dict[str, Any] | None:
        cells = _cells(lines, self.delimiter)
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


def _rows(lines: Iterator[bytes], delimiter: str, columns: int) -> Iterator[list[bytes]]:
    """The lines of each row: several where a quoted cell holds line ends.

    A quote that opens a cell and is never closed would swallow the rows after it. If a row of several lines is not
    closed within _MOST_LINES or has another number of `columns` (0: any) than it should, its first line is a row of
    its own, a broken one, and the others begin anew.
    """
    ahead: deque[bytes] = deque()
    while True:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        taken = [line]
        if b'"' in line:  # else no cell can go on after the line's end, and nothing need be parsed
            cells = _parse(_following(taken, ahead, lines), delimiter)
            if len(taken) > 1 and (cells is None or (columns and len(cells) != columns)):
                ahead.extendleft(reversed(taken[1:]))
                taken = [line]
        yield taken


def _following(taken: list[bytes], ahead: deque[bytes], lines: Iterator[bytes]) -> Iterator[str]:
    """The first line of `taken`, then as many as the parser asks for, each appended to it."""
    yield taken[0].decode("latin-1")  # no byte is refused, and none but the true ones reads as a quote or a delimiter
    size = 0
    while len(taken) < _MOST_LINES and size < _MOST_BYTES:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        taken.append(line)
        size += len(line)
        yield line.decode("latin-1")


def _parse(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """The cells of the first row of `lines`; None if they end inside a quoted cell or are no row."""
    ended = False

    def watched() -> Iterator[str]:
        nonlocal ended
        yield from lines
        ended = True  # the parser wanted another line: a quote is open

    try:
        cells = next(csv.reader(watched(), delimiter=delimiter), [])
    except csv.Error:
        return None
    return None if ended else cells


def _cells(lines: list[bytes], delimiter: str) -> list[str]:
    """The cells of one row, [] if it is blank; Trouble if they cannot be told."""
    try:
        text = [line.decode() for line in lines]
    except UnicodeDecodeError:
        raise Trouble("broken row", "not UTF-8") from None
    cells = _parse(iter(text), delimiter)
    if cells is None:
        raise Trouble("broken row", "a quote is not closed, or a line end stands outside quotes")
    return cells
