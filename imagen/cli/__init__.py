"""The `imagen` command.

__init__.py  runs a command and reports its errors
table.py     the table of commands; each is a module here with its options, help and action
command.py   the definition of a command, and options that several commands share
parser.py    parses a command line; imports nothing heavy, so that --help is instant
fields.py    config fields on the command line, such as --optim.lr 2e-4
values.py    parses the values of options
output.py    prints results: text, --json, --quiet
failures.py  reports errors
prompts.py   reads prompts from a file
"""

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import NoReturn

from imagen.cli.failures import end, is_raw, thread_failed
from imagen.cli.output import perform
from imagen.cli.parser import parse
from imagen.distribution import clashes


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: with 0 on success, 2 on a user error, 130 on Ctrl-C, 1 on anything else.

    A command may have an exit code of its own (`Result.code`).
    A failure prints one line on stderr; for a bug, the line names a file with the traceback. Ctrl-C and a closed pipe
    on stdout print nothing. With IMAGEN_TRACEBACK=1 in the environment, errors are not caught.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is not None:  # None if stdout is closed, as by `>&-`
        # Write each line to a log file at once, and escape characters that its encoding lacks.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning at every fork otherwise
    if "OMP_WAIT_POLICY" not in os.environ:
        # An OpenMP thread without work spins, by default for milliseconds. When other programs use the cores, that
        # delays the threads that have work. 10,000 turns cover the gaps between operators (docs/LOG.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    threading.excepthook = thread_failed
    if not sys.warnoptions:  # warnings are for developers; `python -W` shows them
        warnings.simplefilter("ignore")
    for clash in clashes():
        print(f"imagen: {clash}", file=sys.stderr)
    try:
        code = perform(parse(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if is_raw():
            raise
        sys.exit(end(error, arguments))
    sys.exit(code)
