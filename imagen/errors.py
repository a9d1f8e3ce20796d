"""Define the exception for mistakes that users can correct, and checks that raise it."""

import difflib
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LIMIT = 2**63  # whole numbers must be below it
COMPARED = 200  # characters of an unknown word that `suggest` compares; difflib is slow for long words


class UserError(Exception):
    """Report a mistake in input, configuration or environment that the user can correct.

    The message is one line: what was wrong, where, and what to do. The command line prints it to stderr and exits with
    code 2, without a traceback.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End `python -m imagen.NAME` as the command line does: with one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"imagen: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def suggest(word: str, known: Iterable[str], listed: str = "") -> str:
    """Return "; did you mean 'X'?" with the closest of `known`, or "" if none is close.

    listed: words that list all of them, as in "choose a, b"; they follow in brackets, or after "; " on their own.
    """
    near = difflib.get_close_matches(word[:COMPARED], list(known), n=1)
    if not near:
        return f"; {listed}" if listed else ""
    return f"; did you mean {near[0]!r}?" + (f" ({listed})" if listed else "")


def check_number(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise UserError, beginning with `name`, unless `value` is finite and within the bounds.

    Whole numbers must also be below 2^63, the range of tensors and files.
    """
    finite = -LIMIT <= value < LIMIT if isinstance(value, int) else math.isfinite(value)
    bounds = [
        (least, "at least", least is None or value >= least),
        (above, "above", above is None or value > above),
        (most, "at most", most is None or value <= most),
        (below, "below", below is None or value < below),
    ]
    if finite and all(satisfied for _, _, satisfied in bounds):
        return
    wanted = [f"{words} {shown(bound)}" for bound, words, _ in bounds if bound is not None]
    if not finite and isinstance(value, int) and most is below is None:
        wanted.append("below 2^63")
    raise UserError(f"{name} is {shown(value)}; it must be {' and '.join(wanted) or 'a finite number'}")


def check_text(name: str, text: str, most: int | None = None) -> None:
    """Raise UserError, beginning with `name`, unless `text` is UTF-8 without NUL, at most `most` characters long."""
    if most is not None and len(text) > most:
        raise UserError(f"{name} has {len(text):,} characters; at most {most:,} are allowed ({quoted(text)})")
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates: from undecodable bytes, or from half of a pair in JSON
        raise UserError(f"{name} is not UTF-8: {quoted(text)}") from None
    if "\0" in text:
        raise UserError(f"{name} contains a zero byte: {quoted(text)}")


def quoted(value: object) -> str:
    """Return the repr of a value, truncated to about 60 characters."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:50]!r}..."
    text = shown(value) if isinstance(value, int) and not isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


def shown(value: float) -> str:
    """Format a number for messages: 64, 0.25, 2,500,000, about 10^400."""
    if not isinstance(value, int):
        return f"{value:g}"
    if abs(value) >= LIMIT:
        return f"about {'-' if value < 0 else ''}10^{int(abs(value).bit_length() * math.log10(2))}"
    return f"{value:,}" if abs(value) >= 10**6 else str(value)
