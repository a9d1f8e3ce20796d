"""Prompts from a file: text with one a line, JSON lines, or CSV with a header."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.errors import UserError, suggest

FIELDS = ("prompt", "negative", "seed")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    prompt: str
    negative: str | None = None  # None: that of the command line
    seed: int | None = None


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a .txt, .jsonl or .csv file, in order. Empty lines are none; other fields are left alone.

    Raises UserError, naming file and line, for what cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--prompts {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompts {file} is not a text file in UTF-8") from None
    kind = file.suffix.lower()
    if kind == ".jsonl":
        rows = _json_rows(file, text)
    elif kind == ".csv":
        rows = _csv_rows(file, text)
    else:
        return [Prompt(prompt=line.strip()) for line in text.splitlines() if line.strip()]
    return [_prompt(row, where) for where, row in rows]


def _json_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"--prompts {file}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{where}: expected an object, as {{"prompt": "a red apple"}}')
        yield where, row


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            yield (
                f"--prompts {file}, line {reader.line_num}",
                {k: v for k, v in row.items() if k and v != ""} | {"prompt": row.get("prompt")},
            )
    except csv.Error as error:
        raise UserError(f"--prompts {file}, line {reader.line_num}: {error}") from None


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    for name in row:
        hint = suggest(name, FIELDS) if name not in FIELDS else ""
        if hint:  # a field of another name is somebody else's, but a slip would be ignored silently
            raise UserError(f"{where}: unknown field {name!r}{hint}")
    prompt, negative, seed = (row.get(name) for name in FIELDS)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: it has no field 'prompt' with a text")
    if not isinstance(negative, str | None):
        raise UserError(f"{where}: negative is {negative!r}; it must be a text")
    if seed is not None and (isinstance(seed, bool) or not str(seed).isdecimal()):
        raise UserError(f"{where}: seed is {seed!r}; it must be a whole number from 0")
    return Prompt(prompt=prompt.strip(), negative=negative, seed=None if seed is None else int(seed))
