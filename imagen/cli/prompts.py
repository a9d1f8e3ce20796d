"""Read prompts from a file: text with one prompt per line, JSON, JSON lines, or a table with a header."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen import limits
from imagen.errors import UserError, check_text, quoted, suggest
from imagen.files import open_given, parse_json

FIELDS = ("prompt", "negative", "seed")
MOST_BYTES = 1 << 28  # per file: a million prompts are a tenth of this
_DIGITS = 18  # of a seed

Row = tuple[str, dict[str, Any]]  # its location in the file, for messages, and its fields


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt with the settings that its row gives."""

    prompt: str
    negative: str | None = None  # None: that of the command line
    seed: int | None = None  # likewise


def read_prompts(file: Path) -> list[Prompt]:
    """Read the prompts of a file, in order, in the format that its extension names.

    .txt, or no extension: one prompt per line. .jsonl: one object per line. .json: a list of strings or objects. .csv,
    .tsv: a table with a header. Lines end at a line feed, with or without a carriage return before it. Empty lines are
    skipped; fields other than FIELDS are ignored.

    Raises UserError, naming file and line, for what cannot be read.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(filter(None, _READERS))
        raise UserError(f"--prompts {file}: the file's name must end in {known}, or have no extension")
    return [_prompt(fields, where) for where, fields in reader(f"--prompts {file}", _read(file))]


def _read(file: Path) -> str:
    try:
        with open_given(file) as opened:
            data = opened.read(MOST_BYTES + 1)
    except UserError as error:
        raise UserError(f"--prompts: {error}") from None
    except OSError as error:
        raise UserError(f"--prompts {file}: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"--prompts {file} has more than {MOST_BYTES >> 20} MiB; split it into several files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--prompts {file} is not a text file in UTF-8") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty. `splitlines` would also split at U+2028."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _text_rows(where: str, text: str) -> Iterator[Row]:
    for number, line in _lines(text):
        yield f"{where}, line {number}", {"prompt": line}


def _json_line_rows(where: str, text: str) -> Iterator[Row]:
    for number, line in _lines(text):
        row = _parsed(f"{where}, line {number}", line)
        if not isinstance(row, dict):
            raise UserError(f'{where}, line {number}: expected an object, such as {{"prompt": "a red apple"}}')
        yield f"{where}, line {number}", row


def _json_rows(where: str, text: str) -> Iterator[Row]:
    rows = _parsed(where, text)
    if not isinstance(rows, list):
        raise UserError(f'{where}: expected a list, such as ["a red apple"] or [{{"prompt": "a red apple"}}]')
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str | dict):
            raise UserError(f"{where}, prompt {number}: expected text or an object, not {quoted(row)}")
        yield f"{where}, prompt {number}", {"prompt": row} if isinstance(row, str) else row


def _parsed(where: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None


def _csv_rows(where: str, text: str) -> Iterator[Row]:
    return _table_rows(where, text, ",")


def _tsv_rows(where: str, text: str) -> Iterator[Row]:
    return _table_rows(where, text, "\t")


def _table_rows(where: str, text: str, delimiter: str) -> Iterator[Row]:
    """Read line by line, so that an unclosed quote affects only its own row."""
    header: list[str] | None = None
    for number, line in _lines(text):
        at = f"{where}, line {number}"
        try:
            (cells,) = csv.reader(io.StringIO(line, newline=""), delimiter=delimiter, strict=True)
        except (csv.Error, ValueError):
            hint = "text after a closing quote, or a quote that is not closed on this line"
            raise UserError(f"{at}: {hint}; double the quotes inside a cell, or use .jsonl") from None
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            if header.count("prompt") != 1:
                raise UserError(f"{at}: a table needs a header with one column 'prompt'; this one has {_named(cells)}")
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{at}: {len(cells)} cells, but the header has {len(header)}; quote cells that contain commas"
            )
        yield at, {name: cell for name, cell in zip(header, cells, strict=True) if cell or name == "prompt"}


def _named(cells: list[str]) -> str:
    return quoted(", ".join(cells))


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    for name in row:
        hint = suggest(name[:60], FIELDS) if name not in FIELDS else ""
        if hint:  # other fields are ignored, but a misspelt one must not be
            raise UserError(f"{where}: unknown field {quoted(name)}{hint}")
    prompt, negative, seed = (row.get(name) for name in FIELDS)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: it needs a field 'prompt' that is text")
    if not isinstance(negative, str | None):
        raise UserError(f"{where}: negative is {quoted(negative)}; it must be text")
    digits = str(seed) if isinstance(seed, int | str) and not isinstance(seed, bool) else ""
    if seed is not None and not (digits.isdecimal() and len(digits) <= _DIGITS):
        raise UserError(f"{where}: seed is {quoted(seed)}; it must be a whole number from 0, below 10^{_DIGITS}")
    for name, text in (("the prompt", prompt), ("negative", negative)):
        if text is not None:
            check_text(f"{where}: {name}", text, limits.CHARACTERS)
    return Prompt(prompt=prompt.strip(), negative=negative, seed=None if seed is None else int(digits))


_READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    "": _text_rows,
    ".txt": _text_rows,
    ".jsonl": _json_line_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
}
