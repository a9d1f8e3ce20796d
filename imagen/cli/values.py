"""Values of options, read from text."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from imagen import limits
from imagen.errors import LIMIT, quoted, suggest

MOST = 10**9  # of what is counted: more fits no memory, disk or patience


def up_to(most: int) -> Callable[[str], int]:
    """1, 2, 3, ..., `most`."""

    def count(text: str) -> int:
        if not text.isdecimal() or not text.strip("0"):
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number of 1 or more")
        if len(text) > 4000 or int(text) > most:
            raise argparse.ArgumentTypeError(f"{quoted(text)} is too many; at most {most:,} are possible")
        return int(text)

    return count


count = up_to(MOST)
side = up_to(8192)  # of a picture that is drawn as a whole, in pixels
processes = up_to(limits.PROCESSES)


def count_or_all(text: str) -> int | None:
    return None if text == "all" else count(text)


def whole(text: str) -> int:
    """A whole number that fits 64 bits; its range is checked by what takes it."""
    try:
        value = int(text)
    except ValueError:  # digits by the thousand, too
        value = LIMIT
    if abs(value) >= LIMIT:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number below 2^63")
    return value


def minutes(text: str) -> float:
    """A time that ends."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number above 0")
    if value > MOST:  # clocks, too, have an end
        raise argparse.ArgumentTypeError(f"{quoted(text)} is too much; at most {MOST:,} is possible")
    return value


class Choice:
    """One of `names`; for any other the nearest is suggested. what: what they name, for the message."""

    def __init__(self, *names: str, what: str = "value"):
        self.names, self.what = names, what

    def __call__(self, text: str) -> str:
        if text not in self.names:
            hint = suggest(text, self.names) or f"; choose {', '.join(self.names)}"
            raise argparse.ArgumentTypeError(f"unknown {self.what} {quoted(text)}{hint}")
        return text


class Listed:
    """Values of one kind, separated by commas: one for all stages, or one for each."""

    def __init__(self, kind: Callable[[str], Any]):
        self.kind = kind
        self.names: tuple[str, ...] | None = getattr(kind, "names", None)  # for completion

    def __call__(self, text: str) -> list[Any]:
        try:
            return [self.kind(part) for part in text.split(",")]
        except ValueError:
            what = "whole numbers" if self.kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not {what} with commas between") from None


def span(text: str) -> tuple[int, int]:
    """`10:13`, the first and the last."""
    first, _, last = text.partition(":")
    try:
        found = count(first), count(last)
    except argparse.ArgumentTypeError:
        found = (1, 0)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not the first step and the last, like 10:13")
    return found


def each(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A value, or `none`."""
    return lambda text: None if text == "none" else kind(text)


def interval(text: str) -> tuple[float, float] | None:
    """LOW:HIGH, or `all` for no limits."""
    if text == "all":
        return None
    low, _, high = text.partition(":")
    try:
        return number(low), number(high)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not LOW:HIGH, as in -5:5") from None


def number(text: str) -> float:
    """A finite one; its range is checked by what takes it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number")
    return value


def file_and_name(text: str) -> tuple[str, str]:
    """ "FILE=NAME" as (name, file)."""
    file, _, name = text.rpartition("=")
    if not file or not name.replace("-", "").replace(" ", "").isalnum():
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not FILE=STYLE, with a style of letters, digits and spaces"
        )
    return name, file
