"""The one exception that means "you can fix this yourself"."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one line: what was wrong, where, and what to do. The command
    line prints it on stderr and exits with code 2, never with a traceback.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """ " did you mean 'X'?" with the nearest of `known`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
