"""Values of options, read from text."""

import argparse
import math
from collections.abc import Callable
from typing import Any


def count_or_all(text: str) -> int | None:
    return None if text == "all" else count(text)


def count(text: str) -> int:
    """1, 2, 3, ..."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def minutes(text: str) -> float:
    """A time that ends."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between."""

    def parse_list(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} with commas between") from None

    return parse_list


def span(text: str) -> tuple[int, int]:
    """`10:13`, the first and the last."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not the first step and the last, like 10:13")
    return int(first), int(last)


def each(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A value, or `none`."""
    return lambda text: None if text == "none" else kind(text)


def interval(text: str) -> tuple[float, float] | None:
    """LOW:HIGH, or `all` for no limits."""
    if text == "all":
        return None
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, as in -5:5") from None


def number(text: str) -> float:
    """A finite one; its range is checked by what takes it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def engine(text: str) -> str:
    if text not in ("local", "ray"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither local nor ray")
    return text


def file_and_name(text: str) -> tuple[str, str]:
    """ "FILE=NAME" as (name, file)."""
    file, _, name = text.rpartition("=")
    if not file or not name.replace("-", "").replace(" ", "").isalnum():
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE=STYLE, with a style of letters, digits and spaces")
    return name, file
