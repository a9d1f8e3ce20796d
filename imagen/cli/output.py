"""Print the results of commands: text, one JSON document with `--json`, nothing with `--quiet`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """The result of a command.

    document: JSON values, for `--json`. show: prints the same as text. code: exit code of the command.
    """

    document: Any
    show: Callable[[], None]
    code: int = 0


def lines(document: Any, *texts: str) -> Result:
    """Return a result that is shown as lines of text."""
    return Result(document, lambda: print("\n".join(texts)))


def perform(options: argparse.Namespace) -> int:
    """Run a parsed command, print its result according to `--json` and `--quiet`, and return the exit code.

    With `--json`, all other output goes to stderr, so that stdout contains only the document.
    """
    as_json, quiet = getattr(options, "json", False), getattr(options, "quiet", False)
    if not as_json and not quiet:
        result = options.run(options)
        if result is not None:
            result.show()
        return 0 if result is None else result.code
    with ExitStack() as stack:
        aside: Any = sys.stderr
        if quiet:
            from imagen.progress import hidden_bars

            stack.enter_context(hidden_bars())
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.WARNING)
            aside = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(redirect_stdout(aside))
        result = options.run(options)
    if as_json and result is not None:
        print(json.dumps(result.document, indent=2))
    return 0 if result is None else result.code


def counted(count: int, what: str) -> str:
    """Return a number with its noun: "1 shard", "2,000 shards"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
