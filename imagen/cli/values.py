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


def number(text: str) -> float:
    """A finite one; its range is checked by what takes it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def file_and_name(text: str) -> tuple[str, str]:
    """ "FILE=NAME" as (name, file)."""
    file, _, name = text.rpartition("=")
    if not file or not name.replace("-", "").replace(" ", "").isalnum():
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE=STYLE, with a style of letters, digits and spaces")
    return name, file
