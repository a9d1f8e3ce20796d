"""Write files atomically, and open only regular files."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from imagen.errors import UserError
from imagen.system import HOST_ID, is_alive, lock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_NESTED = 100  # depth of nested lists and objects in JSON; our own files have fewer than ten
MOST_JSON = 2**26  # bytes of a JSON file; parsed, it may take twenty times the memory
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success rename it to `path` and sync the file and the folder.

    Creates missing folders. If the process is killed, the old file is unchanged, and at most a `.tmp` file remains,
    which the next process that writes to the folder removes.
    Raises UserError if the disk is full or the path is not writable, and removes the temporary file.
    """
    path = Path(path)
    # The last part distinguishes equal process ids on hosts, or in containers, that share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_HERE}{secrets.token_hex(3)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # the folder may not exist
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


_HERE = hashlib.blake2b(HOST_ID.encode(), digest_size=3).hexdigest()
_LEFT = re.compile(rf"\..+\.(\d+)-{_HERE}[0-9a-f]{{6}}\.tmp")
_swept: set[str] = set()


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed processes on this host, once per folder."""
    name = os.path.abspath(folder)
    if name in _swept:
        return
    _swept.add(name)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _LEFT.fullmatch(entry.name)
            if match and not is_alive(int(match[1])):
                (folder / entry.name).unlink(missing_ok=True)


def cannot_write(path: str | Path, error: Exception) -> UserError:
    """Return the UserError for an exception raised while writing `path`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    if isinstance(error, FileExistsError | NotADirectoryError):  # mkdir's "File exists" would mislead
        reason = f"{Path(path).parent} is not a folder"
    remedy = "free some space or choose another folder" if code in FULL or code is None else "choose another folder"
    return UserError(f"cannot write {path}: {reason}; {remedy}")


def sync_folder(folder: Path) -> None:
    """Sync renames in `folder` to disk, if the operating system allows opening folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)


LOCK = ".lock"


@contextmanager
def locked(folder: Path, problem: str) -> Iterator[None]:
    """Lock `folder` inside the block, by a file in it. Raises UserError(`problem`) if another process holds the lock.

    The lock is also released if the process is killed. A folder that is read-only is not locked: nobody can change it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = open(folder / LOCK, "a")  # noqa: SIM115  # closed below
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS) and folder.is_dir():
            yield
            return
        raise cannot_write(folder / LOCK, error) from None
    with opened as file:
        if not lock(file) or not os.fstat(file.fileno()).st_nlink:  # 0: its holder has just ended and deleted it
            raise UserError(problem)
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()


def copy_licences(source: Path, target: Path) -> None:
    """Copy LICENSE* files that `target` does not have yet."""
    for licence in sorted(source.glob("LICENSE*")):
        if licence.is_file() and not (target / licence.name).exists():
            with replacing(target / licence.name) as temporary:
                shutil.copyfile(licence, temporary)


def check_replaceable(path: str | Path, mark: bytes, what: str, remedy: str = "choose another file") -> None:
    """Raise UserError if `path` is a file of another kind than the one that is to replace it.

    mark: what the first 1,000 bytes of this kind contain. what: its name, as in "a PNG image". remedy: what to do.
    """
    if not Path(path).is_file():
        return
    with open_given(path) as file:
        if (found := file.read(1_000)) and mark not in found:
            raise UserError(f"{path} already exists and is not {what}; {remedy}")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented strict JSON (NaN is an error), atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class NotAFile(OSError):
    """Report that a path is a folder, a pipe or a device, and not a regular file."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes, without ever blocking.

    Raises NotAFile for anything else, because a pipe without a writer blocks forever and a device may have no end.
    Otherwise raises as `open` does.
    """
    # Checked before opening, because opening a device may have side effects; and opened without blocking and checked
    # again, because the file may be replaced in between.
    _check_regular(os.stat(path).st_mode)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(handle).st_mode)
    except NotAFile:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def open_given(path: str | Path) -> BinaryIO:
    """Open a file that the user named, as `open_regular` does.

    Raises UserError, naming the path, if it does not exist, is not a regular file, or cannot be read.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except NotAFile as error:
        raise UserError(f"{path} is {error.strerror}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL or that cannot be encoded
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: str | Path) -> str:
    """Read a text file of the user's, in UTF-8 with or without a byte-order mark.

    Raises UserError, naming the path, if it cannot be read or is in another encoding.
    """
    with open_given(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8") from None


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise NotAFile(errno.EINVAL, f"{kind}, not a file")


def read_json(path: str | Path, most: int = MOST_JSON) -> Any:
    """Read strict JSON of at most `most` bytes; see `parse_json`.

    Raises UserError naming the file if it is missing, unreadable, larger, broken, or nested too deeply.
    """
    try:
        with open_given(path) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise UserError(f"{path} is larger than {most:,} bytes, the limit for such JSON files")
        return parse_json(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_json_lines(path: str | Path, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read JSON lines. Raises UserError, naming file and line, unless each is an object with the fields `needed`."""
    try:
        with open_given(path) as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return [_row(line, f"{path}, line {n}", needed) for n, line in enumerate(lines, 1) if line.strip()]


def _row(line: bytes, where: str, needed: Sequence[str]) -> dict[str, Any]:
    try:
        row = parse_json(line, finite=False)  # a measurement may be NaN
    except ValueError as error:
        raise UserError(f"{where}, is damaged: {error}") from None
    if not isinstance(row, dict) or any(name not in row for name in needed):
        raise UserError(f"{where}, is damaged: it is not an object with {', '.join(needed) or 'fields'}")
    return row


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Return the value of a JSON text (UTF-8 if bytes).

    Raises ValueError if it is invalid, or nested more than MOST_NESTED deep: Python parses a thousand levels, but
    recursive code then fails. Unless `finite` is False, NaN, infinity and numbers beyond the range of float are errors.
    """
    too_deep = f"it is nested more than {MOST_NESTED} deep"
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, **(_STRICT if finite else {}))
    except RecursionError:
        raise ValueError(too_deep) from None
    if text.count("[") + text.count("{") > MOST_NESTED and _depth(value) > MOST_NESTED:
        raise ValueError(too_deep)
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


_STRICT: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite}


def _depth(value: Any) -> int:
    """Return the nesting depth of lists and objects, computed without recursion."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
