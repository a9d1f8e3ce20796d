"""Split CSV into rows even if quotes are escaped by backslashes, stray or unclosed.

A quoted cell may contain line ends, so an unclosed quote would absorb the following rows, and a later quote may seem to
close it. A row is parsed by the standard if that gives the right number of cells; otherwise with quotes escaped by
backslashes, as Spark writes them; otherwise with literal quotes if one line is then a row. All else is malformed: one
line, or all lines inside the quotes if they may be separate rows.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator

from imagen.data.sources.values import RecordError
from imagen.pictures.names import is_picture

# Base64 cells exceed the csv module's default limit of 128 KiB. The setting applies to the whole process.
csv.field_size_limit(2**31 - 1)
_MOST_LINES, _MOST_BYTES = 256, 1 << 26  # limits of one row; beyond them its opening quote counts as stray
_PICTURE_IN_BASE64 = re.compile(r"data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkq|TU0A|Qk0")
_ESCAPED = re.compile(r'(\\+)"')
_UNIT = r'(?:"[^"]*"|[^"{}])'
_ESCAPED_QUOTE = "\ufffe"  # placeholder for \" while a row is parsed; not a character


class UnclosedQuote(RecordError):
    """Raised for a quote that spans lines that may be one row or several."""


def split_rows(lines: Iterator[bytes], delimiter: str, columns: int) -> Iterator[list[bytes]]:
    """Yield the lines of each row with `columns` cells (0: any number); quoted cells may contain line ends.

    A row depends only on the lines from its beginning on, so reading may start at any row.
    """
    ahead: deque[bytes] = deque()
    while True:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is None:
            return
        row = [line]
        # Without a quote no cell can continue on the next line, so no parsing is needed.
        if b'"' in line and not _fits(_standard(_decoded(row), delimiter), columns):
            row = _row_of_several(line, ahead, lines, delimiter, columns) or row
            for _ in row[1:]:
                ahead.popleft()
        yield row


def cells_of(row: list[bytes], delimiter: str, columns: int) -> list[str]:
    """Return the cells of a row from `split_rows`, not necessarily `columns` of them; [] for a blank row.

    Raises UnclosedQuote for lines that may be several rows, and RecordError for other malformed rows.
    """
    try:
        text = [line.decode() for line in row]
    except UnicodeDecodeError:
        raise RecordError("broken row", "not UTF-8") from None
    if _inner_rows(text, delimiter, columns):
        raise UnclosedQuote(
            "broken row", f"a quote closes {len(text) - 1} lines later, around lines that look like rows"
        )
    parsers = (_standard, _backslashed, _literal) if len(text) == 1 else (_standard, _backslashed)
    readings = [parse(iter(text), delimiter) for parse in parsers]
    cells = next((cells for cells in readings if _fits(cells, columns)), readings[0])
    if cells is None:
        raise RecordError("broken row", "a quote is not closed or is followed by text, or a line end is outside quotes")
    return cells


def _row_of_several(
    line: bytes, ahead: deque[bytes], lines: Iterator[bytes], delimiter: str, columns: int
) -> list[bytes] | None:
    """Return a row that begins with `line` and continues on the next ones, which are put into `ahead`; else None."""
    unclosed = None
    for parse in (_standard, _backslashed):
        if parse is _backslashed and _fits(parse(_decoded([line]), delimiter), columns):
            return None
        row = [line]
        if not _fits(parse(_following(row, ahead, lines), delimiter), columns) or len(row) == 1:
            continue
        inner = _inner_rows(list(_decoded(row)), delimiter, columns)
        if not inner:
            return row
        # If every other line is a row, the first one has a stray quote; otherwise they may be one long cell.
        if inner == 1 or inner < len(row) - 1:
            unclosed = unclosed or row
    return unclosed


def _following(row: list[bytes], ahead: deque[bytes], lines: Iterator[bytes]) -> Iterator[str]:
    """Yield the line in `row`, then further lines on demand; append each to `row` and, if new, to `ahead`."""
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
    # Latin-1 accepts every byte, and only the ASCII bytes decode to quotes, backslashes and delimiters.
    return (line.decode("latin-1") for line in row)


def _fits(cells: list[str] | None, columns: int) -> bool:
    return cells is not None and len(cells) in (0, columns or len(cells))


def _inner_rows(text: list[str], delimiter: str, columns: int) -> int:
    """Count the lines of a row, except the first, that look like rows: enough cells, and one names an image."""

    def names_picture(line: str, least: int) -> bool:
        cells = [cell.strip(' "\r\n') for cell in line.split(delimiter)]
        return len(cells) >= least and any(is_picture(c) or _PICTURE_IN_BASE64.match(c) for c in cells)

    # If a cell before the image is long, the image is not in the first line.
    if len(text) == 1 or not columns or not names_picture(text[0], 1):
        return 0
    return sum(names_picture(line, columns) for line in text[1:])


def _standard(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """Parse the first row of `lines` by the standard; return None if they end inside quotes or are malformed."""
    ended = False

    def watched() -> Iterator[str]:
        nonlocal ended
        yield from lines
        ended = True  # the parser asked for another line: a quote is open

    try:
        cells = next(csv.reader(watched(), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return None
    return None if ended else cells


def _backslashed(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """Parse as `_standard` with \\" as a quote and \\\\ before a quote as a backslash; None if there is no \\"."""
    found = False

    def unescape(match: re.Match[str]) -> str:
        nonlocal found
        count = len(match[1])
        found |= count % 2 == 1
        return "\\" * (count // 2) + (_ESCAPED_QUOTE if count % 2 else '"')

    cells = _standard((_ESCAPED.sub(unescape, line) for line in lines), delimiter)
    return [cell.replace(_ESCAPED_QUOTE, '"') for cell in cells] if cells is not None and found else None


def _literal(lines: Iterator[str], delimiter: str) -> list[str] | None:
    """Parse one line in which some cells begin with a literal quote; return None if it contains a stray \\r."""
    line = next(lines).rstrip("\r\n")
    if "\r" in line:
        return None
    quoted = r'"((?:[^"]|"")*)"'
    balanced = rf'(?="){_UNIT.format(delimiter)}*'  # "one, two" and three
    cell = re.compile(rf"(?:{quoted}|({balanced})|([^{delimiter}]*))(?:{delimiter}|$)")
    cells, position = [], 0
    while position <= len(line):
        match = cell.match(line, position)
        assert match is not None  # the last alternative matches anything
        cells.append(match[1].replace('""', '"') if match[1] is not None else match[2] or match[3] or "")
        position = match.end() + (not match[0].endswith(delimiter))
    return cells
