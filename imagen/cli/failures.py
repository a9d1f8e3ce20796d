"""Report a failure: one line on stderr and an exit code. Tracebacks go to a file."""

import errno
import os
import platform
import shlex
import stat
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from imagen.errors import UserError
from imagen.version import __version__

TRACEBACK = "IMAGEN_TRACEBACK"  # environment variable for developers: with 1, errors are not caught
MISTAKE, BUG, INTERRUPTED, PIPE = 2, 1, 130, 141  # exit codes; shells use 128 + the number of a signal
_MOST = 2000  # characters per line: a message may quote a megabyte
# Errors of a file, a disk or the system, wherever they occur: the user can correct these.
_PLACES = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENOENT", "EEXIST", "ELOOP"),
        *("ENAMETOOLONG", "EIO", "ENXIO", "ENODEV", "EBUSY", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN"),
        *("ENOTEMPTY", "EXDEV", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH"),
    )
    if hasattr(errno, name)
}
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def is_raw() -> bool:
    """Return whether errors are raised instead of reported."""
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def end(error: BaseException, arguments: Sequence[str]) -> int:
    """Report the error that ended the command `arguments`; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _is_piped():  # `imagen presets | head -1`
        _disconnect_stdout()
        return PIPE
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _disconnect_stdout()
    message = _mistake(error)
    _say(_report(error, arguments) if message is None else message)
    return BUG if message is None else MISTAKE


def thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Report an error that ended a thread, except errors of files and disks.

    TensorBoard's thread is the first to find a full disk, and the training loop reports that at its next row.
    """
    error = failure.exc_value
    if error is None or (isinstance(error, OSError) and error.errno in _PLACES):
        return
    if is_raw():
        threading.__excepthook__(failure)
    else:
        _say(_report(error, sys.argv[1:]))


def _mistake(error: BaseException) -> str | None:
    """Return the message of an error that the user can correct; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be read: JSON in JSON, or a folder in a folder, hundreds of times"
    if isinstance(error, OSError) and error.errno in _PLACES:
        return f"{'cannot continue' if error.filename is None else error.filename}: {error.strerror}"
    if type(error).__name__ == "BrokenProcessPool":  # nearly always killed by the system for lack of memory
        return "one of this command's processes was killed, perhaps for lack of memory; use fewer of them (--workers)"
    if _is_out_of_memory(error):
        return (
            "out of memory; use a smaller batch (--batch-size, --batch-tokens or train.micro_batch) or smaller images"
        )
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Recognise Python's error, the GPU's (torch.OutOfMemoryError), and the CPU allocator's RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _report(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the traceback to a file; return the message that names it."""
    what = f"{type(error).__name__}: {error}"
    try:
        handle, path = tempfile.mkstemp(prefix="imagen-bug-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"command: imagen {shlex.join(arguments)}\n{_versions()}\n\n")
            file.writelines(traceback.format_exception(error))
    except OSError as failure:
        again = f"its traceback could not be written ({failure.strerror}); {TRACEBACK}=1 shows it"
        return f"this is a bug in imagen: please report it; {again} ({what})"
    return f"this is a bug in imagen: please report it; the traceback is in {path} ({what})"


def _versions() -> str:
    found = [f"imagen {__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", "pillow", "safetensors", "transformers"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return f"versions: {', '.join(found)}; {platform.platform()}"


def _say(message: str) -> None:
    """Print one line, with unprintable characters escaped: names and prompts may contain any."""
    line = " ".join(message.split())
    if len(line) > _MOST:
        line = f"{line[: _MOST // 2]} [...] {line[-_MOST // 2 :]}"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    with suppress(OSError, AttributeError):  # stderr is closed
        print(f"imagen: {shown}", file=sys.stderr, flush=True)


def _is_piped() -> bool:
    """Return whether stdout is connected to another process."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _disconnect_stdout() -> None:
    """Disconnect a broken stdout: Python would flush it again at exit, and print an error."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
