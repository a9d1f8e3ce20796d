"""Define the interface of a source of pairs: a list of parts, each read independently into records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

CAPTION_FROM = ("folder", "name")

T = TypeVar("T")
Part = dict[str, Any]  # JSON, such as a file and a range in it; any machine with the source can read it


@dataclass(frozen=True, kw_only=True)
class Record:
    """An unchecked pair from a source."""

    key: str  # unique within the source; letters, digits, "_", "-" and "/"; becomes the sample's key
    origin: str  # location for users: "pairs.csv, line 17"
    image: bytes | None = None  # encoded, as in the source
    caption: str | bytes | None = None  # bytes if the source does not guarantee UTF-8; None without a caption
    further: tuple[str | bytes | None, ...] = ()  # captions of the same image after the first one
    embedding: np.ndarray | None = None  # [L, D], without padding, if the source has text embeddings
    # (reason, detail) if the source could not read the record; `imagen.data.build.quality` lists the reasons.
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of opening a source. Columns apply to tables only; None: common names."""

    records_per_part: int = 1000  # at most, except for formats whose parts are files
    spread: bool = False  # where the number of records is known: parts for all cores, each from the whole source
    image_column: str | None = None
    caption_column: str | None = None
    images: Path | None = None  # folder of the images that a table names; None: the table's
    caption_from: str | None = None  # for images in a folder: one of CAPTION_FROM; None: the files beside them
    metadata_only: bool = False  # read only tables named metadata, of several in a folder
    within: Path | None = None  # read no file outside this folder, whatever the records name
    join_rows: bool = True  # combine rows of a table with the same image into one record with several captions


PARTS = 16  # at least, of a source of 1,600 records or more, so that as many processes have work
SMALLEST_PART = 100  # records


def divide(records: Sequence[T], options: Options) -> list[Sequence[T]]:
    """Divide the records of a source into parts, as a function of the records and options alone.

    With `options.spread`, part i of n has the records i, i + n, i + 2n, ...: a shard then contains images of all
    folders, so training mixes them even within a few shards. Otherwise parts are contiguous.
    """
    size = options.records_per_part
    if not options.spread:
        return [records[i : i + size] for i in range(0, len(records), size)]
    size = min(size, max(SMALLEST_PART, -(-len(records) // PARTS)))
    count = -(-len(records) // size)
    return [records[i::count] for i in range(count)]


class Source(Protocol):
    """Pairs in one format. Parts and records are functions of the files alone: the same on every machine.

    A source may have a method `files_of(part)`, which returns the local files that a part is read from, except those
    that rows of a table name. A build then notices that they have changed.
    """

    def parts(self) -> Sequence[Part]:
        """Return the units of work, in order. Raises UserError if the source is invalid."""
        ...

    def read(self, part: Part) -> Iterator[Record]:
        """Yield the records of one part, in order. Bad records have a `problem`; a missing file raises UserError."""
        ...


class Reader(Protocol):
    """A factory of the sources of one format. Creating a source reads no pairs."""

    has_columns: bool  # whether image_column and caption_column apply

    def __call__(self, path: Path, options: Options, /) -> Source: ...

    def recognises(self, path: Path, /) -> bool:
        """Return whether an existing path seems to have this format, by file names and a few bytes."""
        ...
