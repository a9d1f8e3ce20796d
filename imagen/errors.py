"""The one exception that means "you can fix this yourself"."""

import difflib
import math
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one line: what was wrong, where, and what to do. The command
    line prints it on stderr and exits with code 2, never with a traceback.
    """


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'X'?" with the nearest of `known`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_number(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """UserError, beginning with `name`, unless `value` is finite and inside the bounds that are given."""
    bounds = [
        (least, "at least", least is None or value >= least),
        (above, "above", above is None or value > above),
        (most, "at most", most is None or value <= most),
        (below, "below", below is None or value < below),
    ]
    if math.isfinite(value) and all(kept for _, _, kept in bounds):
        return
    wanted = " and ".join(f"{words} {bound:g}" for bound, words, _ in bounds if bound is not None)
    raise UserError(f"{name} is {value:g}; it must be {wanted or 'a finite number'}")
