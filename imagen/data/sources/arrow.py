"""Rows of Arrow tables as records, by pyarrow, which is imported when it is needed."""

from collections.abc import Iterable, Iterator
from typing import Any

from imagen.distribution import missing


def pyarrow(module: str) -> Any:
    """`pyarrow.MODULE`; UserError where the package is not installed."""
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise missing("this format is read by the package pyarrow", "data") from None


def arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for bytes that are not what they should be."""
    return (pyarrow("lib").ArrowException, OSError)


def rows(batches: Iterable[Any], start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, cells by column) of the rows `start` to `end` of record batches. One is turned to Python at a time."""
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


def _cell(scalar: Any) -> Any:
    """A cell as Python; text that is not UTF-8, which Arrow does not check, as bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()
