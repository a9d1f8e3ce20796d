"""What every source of pairs is: a list of parts, each read on its own into records."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CAPTION_FROM = ("folder", "name")

Part = dict[str, Any]  # JSON: a file and a range in it, say; whoever has it and the source can read it, anywhere


@dataclass(frozen=True, kw_only=True)
class Record:
    """One pair as its source holds it. Nothing in it has been checked but that it could be read."""

    key: str  # unique within the source, made of letters, digits, "_", "-" and "/"; becomes the sample's key
    origin: str  # where a person finds it: "pairs.csv, line 17"
    image: bytes | None = None  # encoded, as it lies in the source
    caption: str | bytes | None = None  # bytes where the source does not say that they are UTF-8; None: it has none
    further: tuple[str | bytes | None, ...] = ()  # captions of the same picture, behind the first one
    embedding: np.ndarray | None = None  # [L, D], padding removed: text that was encoded already
    # Why the source could not give it: (reason, detail); the reasons are in `imagen.data.build.quality`, "missing file"
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a source is opened. Columns are named for tables only; None: told by their usual names."""

    records_per_part: int = 1000  # at most, except where a format's part is a file
    image_column: str | None = None
    caption_column: str | None = None
    caption_from: str | None = None  # of pictures in a folder: one of CAPTION_FROM; None: the files beside them
    join_rows: bool = True  # rows of a table with the same picture are one record with several captions


class Source(Protocol):
    """Pairs in one format. Parts and records are functions of the files alone: the same on every machine."""

    def parts(self) -> Sequence[Part]:
        """Units of work, in order. Raises UserError if the source is not what it should be."""
        ...

    def read(self, part: Part) -> Iterator[Record]:
        """The records of one part, in order. A bad record is one with `problem`; only a lost file raises UserError."""
        ...


class Reader(Protocol):
    """What makes the sources of one format. Making one reads no pairs."""

    has_columns: bool  # whether image_column and caption_column mean anything

    def __call__(self, path: Path, options: Options, /) -> Source: ...

    def recognises(self, path: Path, /) -> bool:
        """Whether the path, which exists, looks like this format; told by names and a little reading."""
        ...
