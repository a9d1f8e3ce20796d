"""Read rows of Arrow tables with pyarrow, which is imported on demand."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from imagen.data.sources.joining import group_adjacent
from imagen.distribution import missing


def pyarrow(module: str) -> Any:
    """Import `pyarrow.MODULE`. Raises UserError if the package is not installed."""
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise missing("this format needs the package pyarrow", "data") from None


def arrow_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that pyarrow raises for invalid files."""
    return (pyarrow("lib").ArrowException, OSError)


def rows(batches: Iterable[Any], start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, cells by column) of rows `start` to `end` of record batches, converting one row at a time."""
    first = 0
    for batch in batches:
        last = first + batch.num_rows
        for row in range(max(start, first), min(end, last)):
            yield (
                row,
                {
                    name: _cell(column[row - first])
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                },
            )
        first = last
        if first >= end:
            return


def joined(
    batches: Iterable[Any], start: int, end: int, image: str, join: bool
) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield groups of rows between `start` and `end`, as `rows` yields them; adjacent rows with one image form a group.

    A group belongs to the range that contains its first row: rows at `start` with the image of the row before are
    skipped, and rows after `end` with the image of the last row are included. Without `join` every row is a group.
    """
    if not join:
        yield from ([row] for row in rows(batches, start, end))
        return

    def picture(row: tuple[int, dict[str, Any]]) -> object:
        cell = row[1].get(image)
        value = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
        return value or None

    for group in group_adjacent(_sharing(rows(batches, max(start - 1, 0), sys.maxsize), picture, image), picture):
        if group[0][0] >= end:
            return
        if group[0][0] >= start:
            yield group


def _sharing(
    found: Iterator[tuple[int, dict[str, Any]]], picture: Callable[[Any], object], image: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the same rows, with equal images of adjacent rows as one object, so that memory holds an image once."""
    last: dict[str, Any] = {}
    for row, cells in found:
        if last and picture((row, cells)) is not None and cells[image] == last[image]:
            cells[image] = last[image]
        last = cells
        yield row, cells


def _cell(scalar: Any) -> Any:
    """Convert a cell to Python; text that is not UTF-8, which Arrow does not check, becomes bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes()
        if hasattr(scalar, "items"):  # a struct, with text in it
            return {name: _cell(value) for name, value in scalar.items()}
        return [_cell(value) for value in scalar.values]  # a list
