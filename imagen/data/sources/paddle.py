"""Read the two line formats of the Paddle implementation: tab-separated text with images in base64.

`cc12m_base64` names files of text embeddings and their masks; `laion_400m` contains captions.
"""

import io
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.files import walk
from imagen.data.sources.lines import BROKEN_GZIP, TextFiles, open_lines, single_lines
from imagen.data.sources.values import RecordError, from_base64, no_records_error, printable, read_bytes
from imagen.errors import UserError

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LONGEST_FIRST_LINE = 1 << 26  # maximum bytes read to detect the format of an arbitrary file


class _Lines:
    """A text file with one pair per line, a list file with one text file per line, or a folder of text files.

    Paths in a list are relative to the list's folder. A key is the number of the line, preceded by the number of the
    file if there are several. A `.gz` file is one part.
    """

    has_columns = False
    columns: ClassVar[int]

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.records_per_part = options.records_per_part
        self.within = options.within

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Check the first line of the file, of a folder's first file, or of the first file that a list names."""
        try:
            file = min(_visible(path), default=None) if path.is_dir() else path
            return file is not None and cls._is_text(file)
        except UserError:
            return False

    @classmethod
    def _is_text(cls, file: Path) -> bool:
        """Return whether the first line of a file, or of the first file that it names, is of this format."""
        try:
            line = _first_line(file)
            if line.strip() and b"\t" not in line:
                line = _first_line(file.parent / _name(line))
        except (UserError, *BROKEN_GZIP, ValueError):
            return False
        return cls._is_row(line)

    def parts(self) -> list[Part]:
        names = _text_files(self.path)
        if self.path.is_dir():  # all files of the folder, and those below it in this format
            deeper = [path for path, _ in walk(self.path, lambda names: None) if "/" in path]
            names += [path for path in deeper if not path.endswith(".npy") and self._is_text(self.path / path)]
        if self.within is not None and not all(_is_below(self.root / name, self.within) for name in names):
            raise UserError(f"{printable(self.path)} names files outside the data set; correct the list")
        files = TextFiles(self.root, names, self.records_per_part)
        parts = [part for name in files.names for part in files.parts(name, single_lines)]
        if not parts:
            raise no_records_error(self.path, "lines of pairs")
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        files = TextFiles(self.root, [part["file"]], self.records_per_part)
        folder = (self.root / part["file"]).parent
        next_line = part["line"]
        try:
            for line, (data,) in files.read(part, single_lines):
                key, origin = files.name(part, line)
                next_line = line + 1
                cells = data.rstrip(b"\r\n").split(b"\t")
                if cells == [b""]:
                    continue
                try:
                    if len(cells) != self.columns:
                        raise RecordError("broken row", f"{len(cells)} columns instead of {self.columns}")
                    yield self._record(cells, key, origin, folder)
                except RecordError as error:
                    yield Record(key=key, origin=origin, problem=error.problem)
        except BROKEN_GZIP as error:
            key, origin = files.name(part, next_line)
            yield Record(key=key, origin=f"{origin} and all after it", problem=("unreadable file", f"gzip: {error}"))

    def files_of(self, part: Part) -> list[Path]:
        return [self.root / part["file"]]

    @classmethod
    def _is_row(cls, line: bytes) -> bool:
        # Binary data may contain this number of tabs by chance, but hardly without other control characters.
        return line.count(b"\t") + 1 == cls.columns and not _CONTROL.search(line)

    def _record(self, cells: list[bytes], key: str, origin: str, folder: Path) -> Record:
        raise NotImplementedError


class Cc12mBase64(_Lines):
    """Columns: id, .npy of the embedding, .npy of the mask (both relative to the text file's folder), image."""

    columns = 4

    @classmethod
    def _is_row(cls, line: bytes) -> bool:
        return super()._is_row(line) and all(cell.endswith(b".npy") for cell in line.split(b"\t")[1:3])

    def _record(self, cells: list[bytes], key: str, origin: str, folder: Path) -> Record:
        embedding = _embedding(*(_array(folder, name, self.within) for name in cells[1:3]))
        return Record(key=key, origin=origin, embedding=embedding, image=from_base64(cells[3]))


class Laion400m(_Lines):
    """Six columns; the third is the caption, the fifth the image."""

    columns = 6

    def _record(self, cells: list[bytes], key: str, origin: str, folder: Path) -> Record:
        try:
            return Record(key=key, origin=origin, caption=cells[2], image=from_base64(cells[4]))
        except RecordError as error:
            return Record(key=key, origin=origin, caption=cells[2], problem=error.problem)


def _array(folder: Path, cell: bytes, within: Path | None) -> np.ndarray:
    """Read the array of a .npy file, without unpickling. Raises RecordError."""
    try:
        name = cell.decode()
    except UnicodeDecodeError:
        raise RecordError("broken row", "the name of a .npy file is not UTF-8") from None
    if not name:
        raise RecordError("broken row", "the name of a .npy file is empty")
    data = read_bytes(folder / name, name, within)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # hostile headers: ValueError, SyntaxError, OverflowError, MemoryError, BadZipFile
        raise RecordError("bad embedding", f"{name} is not a complete .npy file: {error}") from None
    if not isinstance(array, np.ndarray):
        raise RecordError("bad embedding", f"{name} is an archive of arrays, not a .npy file")
    return array


def _embedding(embedding: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Select the real tokens [L', D] of [L, D] or [1, L, D] by a mask [L] or [1, L] that is 0 for padding."""
    shapes = f"embedding {list(embedding.shape)} {embedding.dtype}, mask {list(mask.shape)} {mask.dtype}"
    tokens_LD = embedding[0] if embedding.ndim == 3 and len(embedding) == 1 else embedding
    mask_L = mask[0] if mask.ndim == 2 and len(mask) == 1 else mask
    if tokens_LD.ndim != 2 or mask_L.ndim != 1 or len(tokens_LD) != len(mask_L):
        raise RecordError("bad embedding", f"{shapes}: not [L, D] and [L]")
    if tokens_LD.dtype.kind != "f" or mask_L.dtype.kind not in "biuf":
        raise RecordError("bad embedding", f"{shapes}: not numbers of the right type")
    is_real_L = mask_L != 0
    if not is_real_L.any() or not tokens_LD.shape[1]:
        raise RecordError("bad embedding", f"{shapes}: no tokens")
    return tokens_LD[is_real_L]


def _text_files(path: Path) -> list[str]:
    """Return the text files relative to the path's folder: of a folder, sorted; of a list, in order; or the file."""
    if path.is_dir():  # a list of the text files may be among them
        return [file.name for file in sorted(_visible(path)) if not any(_exists(file, n) for n in _first_names(file))]
    if not _first_names(path):
        return [path.name]
    names = []
    with open_lines(path) as lines:
        for name in filter(None, map(_name, lines)):
            if not _exists(path, name):
                where = f"{printable(path)} names {printable(name[:200])}"
                raise UserError(f"{where}, which does not exist; restore it, or correct the list")
            names.append(name)
    return names


def _visible(folder: Path) -> Iterator[Path]:
    return (f for f in folder.iterdir() if f.suffix != ".npy" and not f.name.startswith(".") and f.is_file())


def _first_names(file: Path) -> list[str]:
    """Return the first names in a list file; [] for a text file, which has a tab near its beginning or is a .gz."""
    if file.suffix == ".gz":
        return []
    names = []
    with open_lines(file) as lines:
        for line in islice(lines, 100):
            if b"\t" in line:
                return []
            names.append(_name(line))
    return list(filter(None, names))


def _name(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape").strip()


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _exists(list_file: Path, name: str) -> bool:
    return os.path.isfile(list_file.parent / name)  # unlike Path.is_file, False for a name that is too long


def _first_line(file: Path) -> bytes:
    with open_lines(file) as lines:
        return lines.readline(_LONGEST_FIRST_LINE)


READERS: dict[str, Reader] = {"cc12m_base64": Cc12mBase64, "laion_400m": Laion400m}
