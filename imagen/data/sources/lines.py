"""Split text files into parts at the ends of records, in one pass.

A part is a range of bytes and the number of its first line. A table of any length is therefore listed in little memory,
and a part is read with one seek. A record is identified by the line that it begins on.
"""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from imagen.data.sources.base import Part
from imagen.data.sources.values import printable
from imagen.errors import UserError
from imagen.files import open_regular

BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
MAX_LINE = 2**28  # bytes; a small file can decompress to one line that fills memory
Split = Callable[[Iterator[bytes]], Iterable[list[bytes]]]  # lines -> the lines of each record, in order
Visit = Callable[[list[bytes], int, int], object]  # (lines of a record, its first byte, its first line)


def single_lines(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Split into records of one line."""
    return ([line] for line in lines)


class _GzipLines(gzip.GzipFile):
    """Raises gzip.BadGzipFile at a line of more than MAX_LINE bytes."""

    def readline(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise gzip.BadGzipFile(f"a line of more than {MAX_LINE // 2**20} MiB")
        return line


def open_lines(path: Path) -> IO[bytes]:
    """Open a text file or the content of a `.gz` file. Raises UserError if it cannot be opened."""
    try:
        file = open_regular(path)
        if path.suffix != ".gz":
            return file
        file.close()
        return cast(IO[bytes], _GzipLines(path))
    except FileNotFoundError:
        raise UserError(f"{printable(path)} does not exist; restore it or give another path") from None
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror or error}") from None


class TextFiles:
    """Files of records, as parts: {"file": path relative to `root`, "key": prefix, "start", "end": bytes, "line"}.

    `end` is None for a `.gz` file, which is one part and is not read when parts are listed.
    """

    def __init__(self, root: Path, names: list[str], records_per_part: int):
        self.root = root
        self.names = names
        self.records_per_part = records_per_part

    def parts(
        self, name: str, split: Split, *, start: int = 0, line: int = 1, visit: Visit | None = None
    ) -> Iterator[Part]:
        """Yield the parts of one of `names`, from byte `start`, where line `line` begins.

        visit: called for every record, except those of a `.gz` file.
        """
        prefix = self.prefix(name)
        if name.endswith(".gz"):
            yield {"file": name, "key": prefix, "start": start, "end": None, "line": line}
            return
        with open_lines(self.root / name) as file:
            file.seek(start)
            records, end, next_line = 0, start, line
            for record in split(iter(file)):
                if visit is not None:
                    visit(record, end, next_line)
                records += 1
                next_line += len(record)
                end += len(record[0]) if len(record) == 1 else sum(map(len, record))
                if records == self.records_per_part:
                    yield {"file": name, "key": prefix, "start": start, "end": end, "line": line}
                    records, start, line = 0, end, next_line
            if records:
                yield {"file": name, "key": prefix, "start": start, "end": end, "line": line}

    def read(self, part: Part, split: Split) -> Iterator[tuple[int, list[bytes]]]:
        """Yield (number of its first line, lines) of each record of a part. May raise BROKEN_GZIP at any time."""
        line = part["line"]
        with open_lines(self.root / part["file"]) as file:
            file.seek(part["start"])
            for record in split(_until(file, part["end"])):
                yield line, record
                line += len(record)

    def read_at(self, name: str, start: int, split: Split) -> list[bytes]:
        """Return the lines of the record that begins at byte `start` of one of `names`; [] at the end of the file."""
        with open_lines(self.root / name) as file:
            file.seek(start)
            return next(iter(split(iter(file))), [])

    def prefix(self, name: str) -> str:
        """Return the prefix of the keys of a file's records."""
        return f"{self.names.index(name):05d}-" if len(self.names) > 1 else ""

    def name(self, part: Part, line: int) -> tuple[str, str]:
        """Return key and origin of the record that begins on a line."""
        return f"{part['key']}{line:09d}", f"{printable(part['file'])}, line {line}"


def _until(file: IO[bytes], end: int | None) -> Iterator[bytes]:
    if end is None:
        yield from file
        return
    left = end - file.tell()
    for line in file:
        yield line[:left]
        left -= len(line)
        if left <= 0:
            return
