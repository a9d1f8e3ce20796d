"""What readers share: keys that are safe in a tar, pictures named or held by a cell, what to say of bad ones."""

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

MOST_BYTES = 1 << 30  # of a picture or another value that is read into memory whole
CAPTION_NAMES = ("caption", "captions", "text")  # of a JSON object beside a picture
_TEXT_NAMES = ("caption", "text", "raw", "sentence")  # of an object that is one of a list of captions
Captions = tuple["str | bytes | None", ...]  # of one picture; None where a list has nothing
_SAFE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
_PYTHON_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_PYTHON_LIST = re.compile(rf"\[(?:{_PYTHON_TEXT.pattern})(?:, (?:{_PYTHON_TEXT.pattern}))*\]")
_MADE_KEY = re.compile(r"-[0-9a-f]{16}$")


class RecordError(Exception):
    """One record cannot be given; becomes its `problem`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.problem = (reason, detail)


def safe_key(wanted: str, name: str, *, is_free: bool = True) -> str:
    """`wanted` as a key, as it is if it is plain and free; else it ends in 64 bits of the hash of `name`.

    So different names have different keys where no two share a free `wanted`: a plain one that looks as if it
    ended in a hash gets another.
    """
    if is_free and _SAFE_KEY.fullmatch(wanted) and not _MADE_KEY.search(wanted):
        return wanted
    parts = (re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in wanted.split("/") if part)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return f"{'/'.join(parts)}-{digest}"


def printable(name: str | Path) -> str:
    """A file's name for people: bytes that are not UTF-8, which Python keeps as surrogates, are replaced."""
    return str(name).encode("utf-8", "replace").decode()


def read_bytes(path: Path, name: str) -> bytes:
    """A file that a record names as `name`; RecordError if it cannot be read, or is no file: a pipe, a device."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise RecordError("unreadable file", f"{name} has {size:,} bytes, more than {MOST_BYTES:,}")
            return file.read()
    except FileNotFoundError:
        raise RecordError("missing file", f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise RecordError("unreadable file", f"{name}: {getattr(error, 'strerror', None) or error}") from None


def picture(value: Any, folder: Path, *, is_base64: bool) -> bytes:
    """The encoded picture of a cell: bytes, base64, a path relative to `folder`, or a dict of "bytes" and "path".

    RecordError if there is none, or it cannot be read.
    """
    if isinstance(value, dict):  # how the `datasets` library stores pictures
        value = value.get("bytes") or value.get("path")
    if value is None or value == "" or value == b"":
        raise RecordError("broken row", "no picture")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RecordError("broken row", f"the picture is of type {type(value).__name__}, not a path or bytes")
    if is_base64:
        return from_base64(value)
    if re.match(r"https?://", value):
        raise RecordError("missing file", f"{value} is not on this machine; download it first, with img2dataset say")
    return read_bytes(folder / value, printable(value))


def from_base64(text: str | bytes) -> bytes:
    """Standard or URL-safe base64, padded, alone or after "data:image/...;base64,"; RecordError if it is not."""
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
    """The captions in a JSON file beside a picture, (None,) if there are none.

    RecordError if the file is not a JSON object.
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
    """The captions that a value of a table or of JSON stands for: a text or a list of them; (None,) if none.

    An element of a list, or the value, may be an object with its text as "raw", "caption", "text" or "sentence".
    RecordError if something is of another type.
    """
    if not isinstance(value, list | tuple):
        return (_caption(value, "the caption"),)
    if not value:
        return (None,)
    return tuple(_caption(one, f"caption {number} of {len(value)}") for number, one in enumerate(value, 1))


def texts_of_json(cell: Any) -> list[str] | None:
    """The texts that a cell lists as JSON, or as pandas writes lists; None if it is anything else: a caption as it is.

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
    """The texts of a list as Python's repr has it; nothing but single literals of text is evaluated."""
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
    """Bytes for text that UTF-8 cannot express: JSON may hold half of a surrogate pair."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def no_records_error(path: Path, what: str) -> UserError:
    return UserError(f"{printable(path)} holds no {what}; give another path or --format")


_STANDARD = bytes.maketrans(b"-_", b"+/")
