"""What commands print: text for people, one JSON document for `--json`, nothing for `--quiet`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a command found or made.

    document: JSON values, for `--json`. show: prints the same for people. code: exit code of the command.
    """

    document: Any
    show: Callable[[], None]
    code: int = 0


def lines(document: Any, *texts: str) -> Result:
    """A result that people read as lines of text."""
    return Result(document, lambda: print("\n".join(texts)))


def perform(options: argparse.Namespace) -> int:
    """Run a parsed command, print its result as `--json` and `--quiet` ask, and return the exit code.

    With `--json`, whatever is printed on the way goes to stderr, so that stdout holds the document alone.
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
            aside = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(redirect_stdout(aside))
        result = options.run(options)
    if as_json and result is not None:
        print(json.dumps(result.document, indent=2))
    return 0 if result is None else result.code


def counted(count: int, what: str) -> str:
    """ "1 shard", "2,000 shards"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
