"""Parse the values of options."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imagen import limits
from imagen.errors import LIMIT, quoted, suggest

MOST = 10**9  # for counts


def up_to(most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from 1 to `most`."""

    def count(text: str) -> int:
        if not text.isdecimal() or not text.strip("0"):
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number of 1 or more")
        if len(text) > 4000 or int(text) > most:
            raise argparse.ArgumentTypeError(f"{quoted(text)} is too many; at most {most:,} are possible")
        return int(text)

    return count


count = up_to(MOST)
side = up_to(8192)  # of an image in memory, in pixels
processes = up_to(limits.PROCESSES)


def count_or_all(text: str) -> int | None:
    """Read a count, or `all` as None."""
    return None if text == "all" else count(text)


def whole(text: str) -> int:
    """Read a whole number that fits 64 bits; the command checks its range."""
    try:
        value = int(text)
    except ValueError:  # also for thousands of digits
        value = LIMIT
    if abs(value) >= LIMIT:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number below 2^63")
    return value


def minutes(text: str) -> float:
    """Read a finite time above 0, in any unit."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number above 0")
    if value > MOST:  # larger values overflow clocks
        raise argparse.ArgumentTypeError(f"{quoted(text)} is too much; at most {MOST:,} is possible")
    return value


class Choice:
    """Accept one of `names`, and suggest the nearest for any other. what: the kind of name, for the message."""

    def __init__(self, *names: str, what: str = "value"):
        self.names, self.what = names, what

    def __call__(self, text: str) -> str:
        if text not in self.names:
            hint = suggest(text, self.names) or f"; choose {', '.join(self.names)}"
            raise argparse.ArgumentTypeError(f"unknown {self.what} {quoted(text)}{hint}")
        return text


class Listed:
    """Read values separated by commas: one for all stages, or one per stage."""

    def __init__(self, kind: Callable[[str], Any]):
        self.kind = kind
        self.names: tuple[str, ...] | None = getattr(kind, "names", None)  # for completion

    def __call__(self, text: str) -> list[Any]:
        try:
            return [self.kind(part) for part in text.split(",")]
        except ValueError:
            what = "whole numbers" if self.kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not {what} separated by commas") from None


def span(text: str) -> tuple[int, int]:
    """Read FIRST:LAST, such as `10:13`."""
    first, _, last = text.partition(":")
    try:
        found = count(first), count(last)
    except argparse.ArgumentTypeError:
        found = (1, 0)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not FIRST:LAST, such as 10:13")
    return found


def stage_steps(text: str) -> dict[int, int]:
    """Read RESOLUTION=N,...: sampler steps by stage."""
    steps: dict[int, int] = {}
    for item in text.split(","):
        resolution, equals, steps_of_stage = item.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{quoted(item)} is not RESOLUTION=N, as in 256=2")
        steps[count(resolution)] = count(steps_of_stage)
    return steps


def each(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser that reads `none` as None and other values by `kind`."""
    return lambda text: None if text == "none" else kind(text)


def sampler_options(text: str) -> dict[str, float | str]:
    """Read NAME=V,...: options of a sampler, numbers but for `variance`."""
    options: dict[str, float | str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier() or not value:
            raise argparse.ArgumentTypeError(f"{quoted(item)} is not NAME=VALUE, as in eta=0.5")
        if name in options:
            raise argparse.ArgumentTypeError(f"{name} is given twice")
        options[name] = value if name == "variance" else number(value)
    return options


def interval(text: str) -> tuple[float, float] | str:
    """Read LOW:HIGH, or `all` as itself."""
    if text == "all":
        return text
    low, _, high = text.partition(":")
    try:
        return number(low), number(high)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not LOW:HIGH, as in -5:5") from None


def number(text: str) -> float:
    """Read a finite number; the command checks its range."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number")
    return value


def file_and_name(text: str) -> tuple[str, str]:
    """Read FILE=NAME as (name, file)."""
    file, _, name = text.rpartition("=")
    if not file or not name.replace("-", "").replace(" ", "").isalnum():
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not FILE=STYLE, with a style of letters, digits and spaces"
        )
    return name, file


class LoraFile(NamedTuple):
    """A LoRA file, its weight, and the resolution of the stage that it adapts (None: the first that it fits)."""

    path: Path
    weight: float | None
    resolution: int | None


def lora_file(text: str) -> LoraFile:
    """Read FILE, FILE:WEIGHT, FILE#RESOLUTION or FILE#RESOLUTION:WEIGHT."""
    match = re.fullmatch(r"(?P<path>.+?)(?:#(?P<resolution>\d{1,5}))?(?::(?P<weight>[-+]?[\d.]+(?:e[-+]?\d+)?))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not FILE, FILE:WEIGHT or FILE#RESOLUTION:WEIGHT")
    weight, resolution = match["weight"], match["resolution"]
    try:
        number = None if weight is None else float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(weight)} is not a number") from None
    return LoraFile(Path(match["path"]), number, None if resolution is None else int(resolution))
