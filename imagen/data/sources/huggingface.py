"""Read a data set saved by the `datasets` library (`save_to_disk`), using only pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen.data.sources.arrow import arrow_errors, joined, pyarrow
from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.columns import Columns, find_columns
from imagen.data.sources.joining import Row
from imagen.data.sources.values import no_records_error, printable
from imagen.errors import UserError
from imagen.files import open_regular, read_json


class HuggingFace:
    """A `Dataset`, or all splits of a `DatasetDict`, from its memory-mapped Arrow files.

    A key is the row's number in its file, preceded by the split and the file's number if there are several.
    """

    has_columns = True

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()

    def parts(self) -> list[Part]:
        parts: list[Part] = []
        for split, folder in self._splits().items():
            state = folder / "state.json"
            names = [_get(entry, "filename", str, state) for entry in _get(state, "_data_files", list)]
            for number, name in enumerate(names):
                file = folder / _plain(name, state)
                count = self._count(file)
                prefix = (f"{split}/" if split else "") + (f"{number:05d}-" if len(names) > 1 else "")
                for start in range(0, count, self.options.records_per_part):
                    rows = {"start": start, "end": min(start + self.options.records_per_part, count)}
                    parts.append({"file": str(file.relative_to(self.path)), "key": prefix, **rows})
        if not parts:
            raise no_records_error(self.path, "rows")
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        file = self.path / part["file"]
        stream = _open(file)
        columns = self._columns(stream, file)
        number = part["start"]
        try:
            batches = _selected(stream, columns)
            for group in joined(batches, part["start"], part["end"], columns.image, self.options.join_rows):
                number = group[-1][0] + 1
                yield from columns.records([Row(*_name(part, row), cells) for row, cells in group], file.parent)
        except arrow_errors() as error:  # truncated after it was listed
            reason = str(error).splitlines()[0]
            for row in range(number, part["end"]):
                key, origin = _name(part, row)
                yield Record(key=key, origin=origin, problem=("unreadable file", reason))

    def files_of(self, part: Part) -> list[Path]:
        return [self.path / part["file"]]

    def _splits(self) -> dict[str, Path]:
        """Return the folder of each split by its name; without splits, the data set's folder as ""."""
        dictionary = self.path / "dataset_dict.json"
        if not dictionary.is_file():
            return {"": self.path}
        return {_plain(split, dictionary): self.path / split for split in _get(dictionary, "splits", list)}

    def _count(self, file: Path) -> int:
        """Count the rows without reading the images."""
        stream = _open(file)
        self._columns(stream, file)
        try:
            return sum(batch.num_rows for batch in stream)
        except arrow_errors() as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{printable(file)} is truncated ({reason}); copy it again") from None

    def _columns(self, stream: Any, file: Path) -> Columns:
        return find_columns(stream.schema.names, self.options, file)


def _name(part: Part, row: int) -> tuple[str, str]:
    """Return key and origin of a row of the file."""
    return f"{part['key']}{row:09d}", f"{printable(part['file'])}, row {row + 1}"


def _selected(stream: Any, columns: Columns) -> Iterator[Any]:
    names = list(dict.fromkeys((columns.image, columns.caption)))
    return (batch.select(names) for batch in stream)


def _open(file: Path) -> Any:
    try:
        open_regular(file).close()
        return pyarrow("ipc").open_stream(pyarrow("lib").memory_map(str(file)))
    except FileNotFoundError:
        raise UserError(f"{printable(file)} does not exist; restore it or give another path") from None
    except arrow_errors() as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{printable(file)} is not a complete Arrow file ({reason}); copy it again") from None


def _plain(name: Any, file: Path) -> str:
    """Return the name of a file in the data set. Raises UserError if it is not a plain file name."""
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or Path(name).name != name:
        raise UserError(
            f"{printable(file)} names {str(name)[:100]!r}, which is not a file or folder beside it; save it again"
        )
    return name


def _get(where: Any, name: str, kind: type, file: Path | None = None) -> Any:
    """Return an entry of a JSON object or JSON file. Raises UserError if it is missing or of another type."""
    value = read_json(where) if isinstance(where, Path) else where
    if not (isinstance(value, dict) and isinstance(value.get(name), kind)):
        raise UserError(f"{file or where} is not of a data set saved by save_to_disk (no {name!r}); save it again")
    return value[name]


READERS: dict[str, Reader] = {"huggingface": HuggingFace}
