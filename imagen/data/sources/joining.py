"""Join rows of a table with the same image into one record with several captions.

In a text table such rows may be anywhere: the pass that lists the parts finds them and records them in the parts, so
each part can be read without the others. In other tables only adjacent rows are joined.
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
    """A row of a table."""

    key: str
    origin: str
    cells: dict[str, Any]  # by column


def group_adjacent(rows: Iterable[T], picture: Callable[[T], object]) -> Iterator[list[T]]:
    """Group adjacent rows whose `picture` is equal and not None. If `rows` raises, the last group is yielded first."""
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
    """Find rows of text tables with the same image, using 28 bytes of memory per row."""

    def __init__(self) -> None:
        self._hashes, self._starts, self._lines, self._files = array("q"), array("q"), array("q"), array("i")

    def add(self, picture: bytes | None, file: int, start: int, line: int) -> None:
        """Add a row of file number `file` that begins at byte `start` and line `line`. picture: None without one."""
        if picture is not None:
            self._hashes.append(hash(picture))  # differs between processes, but is never stored
            self._starts.append(start)
            self._lines.append(line)
            self._files.append(file)

    def pictures(self) -> set[int]:
        """Return the hashes (of `hash`) of all images that were added."""
        return set(self._hashes)

    def annotate(self, parts: list[Part], names: list[str]) -> None:
        """Record in the parts of the files `names`, in order, which rows have the same image.

        part["again"]: {line of a row: [[file, start, line] of each later row with its image, ...]};
        part["skip"]: lines of these later rows. Parts without repeated images are unchanged.
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
