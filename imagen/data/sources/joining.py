"""Rows of a table with the same picture, as data sets with several captions have them: one record with all captions.

In a text table they are found wherever they stand, by the pass that lists it; its parts then say so, and each can be
read without the others. In other tables they are found where they are neighbours.
"""

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from imagen.data.sources.base import Part

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A row of a table, as far as it could be read."""

    key: str
    origin: str
    cells: dict[str, Any]  # by column


def group_adjacent(rows: Iterable[T], picture: Callable[[T], object]) -> Iterator[list[T]]:
    """Rows in groups of neighbours whose `picture` is equal and not None. Whole ones arrive before an error does."""
    group: list[T] = []
    common: object = None
    try:
        for row in rows:
            shown = picture(row)
            if group and shown is not None and shown == common:
                group.append(row)
                continue
            if group:
                yield group
            group, common = [row], shown
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


class RepeatedImages:
    """Finds rows of text tables with equal pictures, keeping 28 bytes a row."""

    def __init__(self) -> None:
        self._hashes, self._starts, self._lines, self._files = array("q"), array("q"), array("q"), array("i")

    def see(self, picture: bytes | None, file: int, start: int, line: int) -> None:
        """A row of file number `file`, which begins at byte `start` and on line `line`; None: it has no picture."""
        if picture is not None:
            self._hashes.append(hash(picture))  # another one in each process, which means nothing here
            self._starts.append(start)
            self._lines.append(line)
            self._files.append(file)

    def pictures(self) -> set[int]:
        """The hashes, as `hash` gives them, of all pictures seen."""
        return set(self._hashes)

    def note(self, parts: list[Part], names: list[str]) -> None:
        """Tell the parts of the files `names`, in order, which rows have captions elsewhere.

        part["again"]: {line of a row: [[file, start, line] of each later row with its picture, ...]};
        part["skip"]: lines of these later rows. Parts without any stay as they are.
        """
        if not self._hashes:
            return
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        begins = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]])
        ends = np.r_[begins[1:], len(order)]
        several = np.flatnonzero(ends - begins > 1)
        of_file: dict[str, list[Part]] = defaultdict(list)
        for part in parts:
            of_file[part["file"]].append(part)
        starts = {name: [part["start"] for part in some] for name, some in of_file.items()}

        def part_of(row: int) -> Part:
            name = names[self._files[row]]
            return of_file[name][bisect_right(starts[name], self._starts[row]) - 1]

        for group in several.tolist():
            first, *later = order[begins[group] : ends[group]].tolist()
            again = part_of(first).setdefault("again", {})
            again[str(self._lines[first])] = [
                [names[self._files[row]], self._starts[row], self._lines[row]] for row in later
            ]
            for row in later:
                part_of(row).setdefault("skip", []).append(self._lines[row])
        for part in parts:
            if "skip" in part:
                part["skip"].sort()
