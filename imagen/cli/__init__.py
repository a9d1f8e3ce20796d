"""The `imagen` command.

__init__.py  runs a command and reports its errors
table.py     the commands; each is a module here with its options, its help and what it does
command.py   what a command is, and the options that several share
parser.py    from a command line to options; nothing heavy is imported, so that --help is instant
fields.py    config fields on the command line, --optim.lr 2e-4
values.py    values of options
output.py    what is printed: text, --json, --quiet
failures.py  how an error is reported
prompts.py   prompts from a file
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
    """Run one command.

    Exits with 0 on success (or with the command's own code), 2 on a user's mistake, 130 on Ctrl-C, 1 otherwise. But for
    Ctrl-C, and for a reader of stdout that is gone, a failure is one line on stderr; of a bug that line names the file
    of the traceback. With IMAGEN_TRACEBACK=1 in the environment errors are raised as they are.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is not None:  # closed, by `>&-`
        # Lines reach a log file as they are printed, and what its encoding lacks is no error.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning at every fork otherwise
    threading.excepthook = thread_failed
    if not sys.warnoptions:  # for programmers; `python -W` shows them
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
