"""The `imagen` command.

__init__.py   running a command, and what its errors look like
arguments.py  commands, options and their help; imports nothing heavy, so that --help is instant
failures.py   what is said of an error
values.py     values of options
commands.py   what the commands do; heavy imports are inside
data.py       both for `imagen data build` and `imagen data inspect`
convert.py    both for `imagen convert`
sampling.py   both for `imagen sample` and `imagen upscale`
serve.py      both for `imagen serve`
prompts.py    prompts from a file
plan.py       both for `imagen plan`
evaluate.py   both for `imagen evaluate` and `imagen compare`
"""

import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import NoReturn

from imagen.cli.arguments import parse
from imagen.cli.failures import end, is_raw, thread_failed
from imagen.distribution import clashes


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command.

    Exits with 0 on success, 2 on a user's mistake, 130 on Ctrl-C, 1 otherwise. But for Ctrl-C, and for a reader of
    stdout that is gone, a failure is one line on stderr; of a bug that line names the file of the traceback. With
    IMAGEN_TRACEBACK=1 in the environment errors are raised as they are.
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
        options = parse(arguments)
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if is_raw():
            raise
        sys.exit(end(error, arguments))
    sys.exit(0)
