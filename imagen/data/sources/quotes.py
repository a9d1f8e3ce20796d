"""Rows of CSV as people have them: well quoted, or with quotes that are escaped by a backslash, stray or unclosed.

A cell in quotes may hold line ends, so a quote that is never closed would swallow the rows after it, and a later quote
may seem to close it. A row is read as the standard has it if that gives the right number of cells; else with quotes
escaped by backslashes, as Spark writes them; else its quotes are taken literally, if one line is a row then. What is
none of these is broken: one line, or all that a quote encloses where that may be rows of their own.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator

from imagen.data.sources.values import Trouble
from imagen.pictures.names import is_picture

# A cell of base64 is far longer than the csv module's own limit of 128 KiB. The setting is the whole process's.
csv.field_size_limit(2**31 - 1)
_MOST_LINES, _MOST_BYTES = 256, 1 << 26  # of one row, beyond which its opening quote is taken for a stray one
_PICTURE_IN_BASE64 = re.compile(r"data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkq|TU0A|Qk0")
_ESCAPED = re.compile(r'(\\+)"')
_UNIT = r'(?:"[^"]*"|[^"{}])'
_ESCAPED_QUOTE = "\ufffe"  # stands for \" while a row is parsed; no character


class Swallowed(Trouble):
    """Lines of which nobody can tell whether they are one row or several."""


def split_rows(lines: Iterator[bytes], delimiter: str, columns: int) -> Iterator[list[bytes]]:
    """The lines of each row of so many `columns` (0: any): several where a quoted cell holds line ends.

    How a row is cut depends on what follows its beginning alone, so that reading may begin at any of them.
    """
    ahead: deque[bytes] = deque()
    while True:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        row = [line]
        # Without a quote no cell can go on after the line's end, and nothing need be parsed.
        if b'"' in line and not _fits(_standard(_decoded(row), delimiter), columns):
            row = _row_of_several(line, ahead, lines, delimiter, columns) or row
            for _ in row[1:]:
                ahead.popleft()
        yield row


def cells_of(row: list[bytes], delimiter: str, columns: int) -> list[str]:
    """The cells of a row as `split_rows` cut it, [] if it is blank. There may be more or fewer than `columns`.

    Raises Swallowed for lines that may be several rows, Trouble where the cells cannot be told.
    """
    try:
        text = [line.decode() for line in row]
    except UnicodeDecodeError:
        raise Trouble("broken row", "not UTF-8") from None
    if _inner_rows(text, delimiter, columns):
        raise Swallowed("broken row", f"a quote that closes {len(text) - 1} lines on is around what looks like rows")
    parsers = (_standard, _backslashed, _literal) if len(text) == 1 else (_standard, _backslashed)
    readings = [parse(iter(text), delimiter) for parse in parsers]
    cells = next((cells for cells in readings if _fits(cells, columns)), readings[0])
    if cells is None:
        raise Trouble("broken row", "a quote is not closed or has text behind it, or a line end stands outside quotes")
    return cells


def _row_of_several(
    line: bytes, ahead: deque[bytes], lines: Iterator[bytes], delimiter: str, columns: int
) -> list[bytes] | None:
    """A row that begins with `line` and goes on in the next ones, which are put into `ahead`; None if there is none."""
    swallowed = None
    for parse in (_standard, _backslashed):
        if parse is _backslashed and _fits(parse(_decoded([line]), delimiter), columns):
            return None
        row = [line]
        if not _fits(parse(_following(row, ahead, lines), delimiter), columns) or len(row) == 1:
            continue
        inner = _inner_rows(list(_decoded(row)), delimiter, columns)
        if not inner:
            return row
        # If all the others are rows by themselves, the first one has a stray quote; else it may be a long cell.
        if inner == 1 or inner < len(row) - 1:
            swallowed = swallowed or row
    return swallowed


def _following(row: list[bytes], ahead: deque[bytes], lines: Iterator[bytes]) -> Iterator[str]:
    """The line in `row`, then as many as the parser asks for; each is appended to `row` and is in `ahead`."""
    yield from _decoded(row)
    size = 0
    while len(row) < _MOST_LINES and size < _MOST_BYTES:
        if len(row) > len(ahead):
            line = next(lines, None)
            if line is None:
                return
            ahead.append(line)
        row.append(ahead[len(row) - 1])
        size += len(row[-1])
        yield from _decoded(row[-1:])


def _decoded(row: list[bytes]) -> Iterator[str]:
    # No byte is refused, and none but the true ones reads as a quote, a backslash or a delimiter.
    return (line.decode("latin-1") for line in row)


def _fits(cells: list[str] | None, columns: int) -> bool:
    return cells is not None and len(cells) in (0, columns or len(cells))


def _inner_rows(text: list[str], delimiter: str, columns: int) -> int:
    """How many lines of a row, but the first, look like rows: each names a picture in one of enough cells."""

    def names_picture(line: str, least: int) -> bool:
        cells = [cell.strip(' "\r\n') for cell in line.split(delimiter)]
        return len(cells) >= least and any(is_picture(c) or _PICTURE_IN_BASE64.match(c) for c in cells)

    # A cell before the picture may be long: then the picture is not in the first line.
    if len(text) == 1 or not columns or not names_picture(text[0], 1):
        return 0
    return sum(names_picture(line, columns) for line in text[1:])


def _standard(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """The cells of the first row of `lines`; None if they end inside a quoted cell or are no row."""
    ended = False

    def watched() -> Iterator[str]:
        nonlocal ended
        yield from lines
        ended = True  # the parser wanted another line: a quote is open

    try:
        cells = next(csv.reader(watched(), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return None
    return None if ended else cells


def _backslashed(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """The same where \\" is a quote and, before one, \\\\ a backslash. None if there is no \\"."""
    found = False

    def unescape(match: re.Match[str]) -> str:
        nonlocal found
        count = len(match[1])
        found |= count % 2 == 1
        return "\\" * (count // 2) + (_ESCAPED_QUOTE if count % 2 else '"')

    cells = _standard((_ESCAPED.sub(unescape, line) for line in lines), delimiter)
    return [cell.replace(_ESCAPED_QUOTE, '"') for cell in cells] if cells is not None and found else None


def _literal(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """The cells of one line, of which some begin with a quote that means nothing; None if it has a stray \\r."""
    line = next(lines).rstrip("\r\n")
    if "\r" in line:
        return None
    quoted = r'"((?:[^"]|"")*)"'
    balanced = rf'(?="){_UNIT.format(delimiter)}*'  # "one, two" and three
    cell = re.compile(rf"(?:{quoted}|({balanced})|([^{delimiter}]*))(?:{delimiter}|$)")
    cells, place = [], 0
    while place <= len(line):
        match = cell.match(line, place)
        assert match is not None  # the last alternative matches anything
        cells.append(match[1].replace('""', '"') if match[1] is not None else match[2] or match[3] or "")
        place = match.end() + (not match[0].endswith(delimiter))
    return cells
