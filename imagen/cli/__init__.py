"""The `imagen` command.

__init__.py   running a command, and what its errors look like
arguments.py  commands, options and their help; imports nothing heavy, so that --help is instant
values.py     values of options
commands.py   what the commands do; heavy imports are inside
data.py       both for `imagen data build` and `imagen data inspect`
convert.py    both for `imagen convert`
sampling.py   both for `imagen sample` and `imagen upscale`
prompts.py    prompts from a file
plan.py       both for `imagen plan`
evaluate.py   both for `imagen evaluate` and `imagen compare`
"""

import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from imagen.cli.arguments import parse
from imagen.distribution import clashes
from imagen.errors import UserError

# Trouble with the place that is written to or read from, whichever part met it: the user's to mend, not ours.
PLACES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO),
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; exit 0 on success, 2 on a user's mistake (one line on stderr), 1 otherwise."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines reach a log file as they are printed
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning at every fork otherwise
    threading.excepthook = _thread_failed
    for clash in clashes():
        print(f"imagen: {clash}", file=sys.stderr)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        options.run(options)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # `imagen presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("imagen: interrupted", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in PLACES:
            raise
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        batch = "a smaller batch (--batch-size, --batch-tokens or train.micro_batch)"
        _fail(f"out of memory; use {batch} or smaller pictures")
    sys.exit(0)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets the full disk first; whoever hands it the next row is told, and reports it."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in PLACES):
        threading.__excepthook__(failure)


def _fail(message: str) -> NoReturn:
    print(f"imagen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _out_of_memory(error: Exception) -> bool:
    """Python's, the GPU's (torch.OutOfMemoryError) or that of torch's CPU allocator, which has no class of its own."""
    words = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(word in str(error) for word in words)
    )
