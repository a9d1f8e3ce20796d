"""Convert values that sources share: keys that are safe in a tar, images and captions of a cell, and their errors."""

import ast
import base64
import binascii
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from imagen.errors import UserError
from imagen.files import open_regular

MOST_BYTES = 1 << 30  # maximum size of an image or another value that is read into memory
CAPTION_NAMES = ("caption", "captions", "text")  # keys of a JSON object beside an image
_TEXT_NAMES = ("caption", "text", "raw", "sentence")  # keys of an object in a list of captions
Captions = tuple["str | bytes | None", ...]  # of one image; None for a missing caption
_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
_PYTHON_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_PYTHON_LIST = re.compile(rf"\[(?:{_PYTHON_TEXT.pattern})(?:, (?:{_PYTHON_TEXT.pattern}))*\]")
_MADE_KEY = re.compile(r"-[0-9a-f]{16}$")


class RecordError(Exception):
    """Raised for a record that cannot be read; (reason, detail) becomes its `problem`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.problem = (reason, detail)


def safe_key(wanted: str, name: str, *, is_free: bool = True) -> str:
    """Return `wanted` unchanged if it is a safe key and free; else a safe form that ends in a 64-bit hash of `name`.

    Keys of different names differ if no two of them share a free `wanted`: a safe one that already looks as if it ended
    in a hash gets a hash, too.
    """
    if is_free and _SAFE_KEY.fullmatch(wanted) and not _MADE_KEY.search(wanted):
        return wanted
    parts = (re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in wanted.split("/") if part)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{'/'.join(parts)}-{digest}"


def printable(name: str | Path) -> str:
    """Return a file name for messages: bytes that are not UTF-8 (surrogates in Python) are replaced."""
    return str(name).encode("utf-8", "replace").decode()


def read_bytes(path: Path, name: str, within: Path | None = None) -> bytes:
    """Read a file that a record names as `name`.

    Raises RecordError if it is unreadable, not a regular file, or not below `within`, if that is given.
    """
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise RecordError("missing file", f"{name} is not a file of the data set")
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise RecordError("unreadable file", f"{name} has {size:,} bytes, more than {MOST_BYTES:,}")
            return file.read()
    except FileNotFoundError:
        raise RecordError("missing file", f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise RecordError("unreadable file", f"{name}: {getattr(error, 'strerror', None) or error}") from None


def picture(value: Any, folder: Path, *, is_base64: bool, within: Path | None = None) -> bytes:
    """Return the encoded image of a cell: bytes, base64, a path relative to `folder`, or a dict of "bytes" and "path".

    within: as for `read_bytes`. Raises RecordError if there is none or it cannot be read.
    """
    if isinstance(value, dict):  # as the `datasets` library stores images
        value = value.get("bytes") or value.get("path")
    if value is None or value == "" or value == b"":
        raise RecordError("broken row", "no image")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RecordError("broken row", f"the image is of type {type(value).__name__}, not a path or bytes")
    if is_base64:
        return from_base64(value)
    if re.match(r"https?://", value):
        raise RecordError("missing file", f"{value} is a URL; download the images first, for example with img2dataset")
    return read_bytes(folder / value, printable(value), within)


def from_base64(text: str | bytes) -> bytes:
    """Decode standard or URL-safe base64, padded, with or without "data:image/...;base64,". Raises RecordError."""
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if data.startswith(b"data:"):
        data = data.partition(b",")[2]
    data = data.strip()
    if not data:
        raise RecordError("bad base64", "empty")
    try:
        return base64.b64decode(data.translate(_STANDARD), validate=True)
    except binascii.Error as error:
        raise RecordError("bad base64", str(error)) from None


def captions_of_json(data: bytes, name: str) -> Captions:
    """Return the captions in a JSON file beside an image; (None,) without any.

    Raises RecordError if the file is not a JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("unreadable file", f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RecordError("unreadable file", f"{name} is not a JSON object")
    found = (value.get(key) for key in CAPTION_NAMES)
    return captions_of(next((captions for captions in found if isinstance(captions, str | list)), None))


def captions_of(value: Any) -> Captions:
    """Return the captions in a value of a table or of JSON, a string or a list of strings; (None,) without any.

    The value, or an element of the list, may be an object with its text in "raw", "caption", "text" or "sentence".
    Raises RecordError for another type.
    """
    if not isinstance(value, list | tuple):
        return (_caption(value, "the caption"),)
    if not value:
        return (None,)
    return tuple(_caption(one, f"caption {number} of {len(value)}") for number, one in enumerate(value, 1))


def texts_of_json(cell: Any) -> list[str] | None:
    """Return the strings of a cell with a list in JSON or as pandas writes it; None if the cell is a plain caption.

    ["a", "b"] and ['a', "b's"] are lists.
    """
    if not (isinstance(cell, str) and cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = _python_list(cell)
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


def _python_list(cell: str) -> list[str] | None:
    """Parse a list of strings in Python's repr; only single string literals are evaluated."""
    if not _PYTHON_LIST.fullmatch(cell):
        return None
    try:
        return [ast.literal_eval(match[0]) for match in _PYTHON_TEXT.finditer(cell)]
    except (ValueError, SyntaxError):  # \x without digits, a line end
        return None


def _caption(value: Any, what: str) -> str | bytes | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _TEXT_NAMES if isinstance(value.get(name), str | bytes)), value)
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RecordError("broken row", f"{what} is of type {type(value).__name__}, not text")
    return as_caption(value)


def as_caption(text: str | None) -> str | bytes | None:
    """Return text as bytes if UTF-8 cannot encode it: JSON may contain an unpaired surrogate."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def no_records_error(path: Path, what: str) -> UserError:
    """Return the error for a source without records; `what` names what is missing."""
    return UserError(f"{printable(path)} contains no {what}; give another path or --format")


_STANDARD = bytes.maketrans(b"-_", b"+/")
