"""Files that are either whole or absent."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from imagen.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it over `path`, and make that survive a power cut.

    Folders that are missing are made. A killed process leaves the old file untouched and at most a `.tmp` file behind.
    A full disk or a place that cannot be written raises UserError, with the half-written temporary file removed.
    """
    path = Path(path)
    # The random part keeps apart processes of the same number on machines, or in containers, that share the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps the OSError of a full disk
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # where there is no folder
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def cannot_write(path: str | Path, error: Exception) -> UserError:
    """The one line for an error met while writing `path`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    if isinstance(error, FileExistsError | NotADirectoryError):  # mkdir's "File exists" would mislead
        reason = f"{Path(path).parent} is not a folder"
    remedy = "free some space or choose another place" if code in FULL or code is None else "choose another place"
    return UserError(f"cannot write {path}: {reason}; {remedy}")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def copy_licences(source: Path, target: Path) -> None:
    """Copy files named LICENSE* along with what they are the licence of; those that `target` has already stay."""
    for licence in sorted(source.glob("LICENSE*")):
        if licence.is_file() and not (target / licence.name).exists():
            shutil.copyfile(licence, target / licence.name)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented strict JSON (NaN is an error), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing, unreadable or broken file is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path} is not valid JSON: {error}") from None
