"""Read Parquet files with a caption column and a column of images: bytes, structs of `datasets`, or paths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen.data.sources.arrow import arrow_errors, joined, pyarrow
from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.columns import Columns, find_columns
from imagen.data.sources.files import files_below, has_files
from imagen.data.sources.joining import Row
from imagen.data.sources.values import no_records_error, printable
from imagen.errors import UserError
from imagen.files import open_regular

_BATCH = 16  # rows decoded at once; their images are in memory together with their page


class Parquet:
    """One file, or all files `*.parquet` below a folder.

    A part is within one row group and decodes the group from its beginning, so row groups of about `records_per_part`
    rows are read fastest. A key is the row's number in its file, preceded by the file's number if there are several.
    """

    has_columns = True

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self.root = path if path.is_dir() else path.parent

    @staticmethod
    def recognises(path: Path) -> bool:
        if not path.is_dir():
            return path.name.lower().endswith(".parquet")
        # Downloads of `datasets` have them one folder deeper; img2dataset writes tables of URLs beside its tars.
        return any(any(path.glob(p)) for p in ("*.parquet", "*/*.parquet")) and not has_files(path, (".tar",))

    def parts(self) -> list[Part]:
        names = self.names()
        parts: list[Part] = []
        for number, name in enumerate(names):
            table = self.open_table(name)
            self._columns(table, self.root / name)
            prefix = f"{number:05d}-" if len(names) > 1 else ""
            first = 0  # row of the file
            for group in range(table.metadata.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                for start in range(0, count, self.options.records_per_part):
                    end = min(start + self.options.records_per_part, count)
                    rows = {"group": group, "start": start, "end": end, "row": first + start}
                    parts.append({"file": name, "key": prefix, **rows})
                first += count
        if not parts:
            raise no_records_error(self.path, "rows")
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        file = self.root / part["file"]
        table = self.open_table(part["file"])
        columns = self._columns(table, file)
        before = part["row"] - part["start"]  # rows of the file before the row group
        batches, number = self._batches(table, part["group"], columns), part["row"]
        try:
            for group in joined(batches, part["start"], part["end"], columns.image, self.options.join_rows):
                number = before + group[-1][0] + 1
                found = [Row(*self._name(part, before + row), cells) for row, cells in group]
                yield from columns.records(found, self.options.images or file.parent)
        except arrow_errors() as error:  # a damaged page; rows before it have been yielded
            reason = str(error).splitlines()[0]
            for row in range(number, before + part["end"]):
                key, origin = self._name(part, row)
                yield Record(key=key, origin=origin, problem=("unreadable file", f"a damaged page: {reason}"))

    def files_of(self, part: Part) -> list[Path]:
        return [self.root / part["file"]]

    def _name(self, part: Part, row: int) -> tuple[str, str]:
        """Return key and origin of a row of the file."""
        return f"{part['key']}{row:09d}", f"{printable(part['file'])}, row {row + 1}"

    def _batches(self, table: Any, group: int, columns: Columns) -> Iterator[Any]:
        # Without threads, because a build runs one process per core.
        names = list(dict.fromkeys((columns.image, columns.caption)))
        yield from table.iter_batches(_BATCH, row_groups=[group], columns=names, use_threads=False)

    def names(self) -> list[str]:
        """Return the files' paths relative to `root`, in order."""
        return files_below(self.path, (".parquet", ".parq")) if self.path.is_dir() else [self.path.name]

    def open_table(self, name: str) -> Any:
        """Open one of the files as a pyarrow `ParquetFile`. Raises UserError."""
        file, parquet = self.root / name, pyarrow("parquet")
        try:
            open_regular(file).close()
            return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        except FileNotFoundError:
            raise UserError(f"{printable(file)} does not exist; restore it or give another path") from None
        except arrow_errors() as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{printable(file)} is not a complete Parquet file ({reason}); copy it again") from None

    def _columns(self, table: Any, file: Path) -> Columns:
        return find_columns(table.schema_arrow.names, self.options, file)


READERS: dict[str, Reader] = {"parquet": Parquet}
