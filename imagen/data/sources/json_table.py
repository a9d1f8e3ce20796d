"""Read one JSON file: a list of objects, COCO captions (images and annotations), or Karpathy's splits of COCO."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen.data.sources.base import Options, Part, Reader, Record, divide
from imagen.data.sources.columns import Columns, common, find_columns
from imagen.data.sources.joining import Row
from imagen.data.sources.values import RecordError, no_records_error, printable, read_bytes
from imagen.errors import UserError

_LISTS = ("images", "annotations", "data", "samples")  # keys of an object that may contain its rows, by preference


class Json:
    """A file *.json, which is read into memory as a whole.

    Rows are the elements of its list. For COCO's two lists they are the annotations, each with the fields of its image,
    and the images without annotations. Rows with the same image form one record. A key is the number of the row; paths
    of images are relative to the file's folder, or that of COCO's images.
    """

    has_columns = True

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self._read: tuple[list[Any], Columns] | None = None

    @staticmethod
    def recognises(path: Path) -> bool:
        return not path.is_dir() and path.name.lower().endswith(".json")

    def parts(self) -> list[Part]:
        rows, columns = self._table()
        groups: dict[bytes | int, list[int]] = {}
        for number, cells in enumerate(rows):
            picture = columns.picture(cells, "") if isinstance(cells, dict) and self.options.join_rows else None
            groups.setdefault(number if picture is None else picture, []).append(number)
        return [{"rows": list(some)} for some in divide(list(groups.values()), self.options)]

    def read(self, part: Part) -> Iterator[Record]:
        rows, columns = self._table()
        for group in part["rows"]:
            found = []
            for number in group:
                key, origin = f"{number:09d}", f"{printable(self.path.name)}, row {number + 1}"
                cells = rows[number] if number < len(rows) else None
                if isinstance(cells, dict):
                    found.append(Row(key, origin, cells))
                else:
                    yield Record(key=key, origin=origin, problem=("broken row", "not a JSON object"))
            if found:
                yield from columns.records(found, self._images(rows, columns))

    def files_of(self, part: Part) -> list[Path]:
        return [self.path]

    def _images(self, rows: list[Any], columns: Columns) -> Path:
        """Return the folder of the images: the named one, the table's, or COCO's folder beside that of annotations.

        COCO has annotations/captions_train2017.json and train2017/000000000009.jpg.
        """
        if self.options.images is not None:
            return self.options.images
        here = self.path.parent
        beside = here.absolute().parent / self.path.stem.rpartition("_")[2]
        name = next((row[columns.image] for row in rows if isinstance(row, dict) and row.get(columns.image)), None)
        if isinstance(name, str) and not os.path.exists(here / name) and os.path.exists(beside / name):
            return beside
        return here

    def _table(self) -> tuple[list[Any], Columns]:
        if self._read is None:
            rows = [_whole_path(row, self.path.parent) for row in _rows(self._value(), self.path)]
            counts: Counter[str] = Counter()
            for row in rows:
                if isinstance(row, dict):
                    counts.update({name: value is not None for name, value in row.items()})
            self._read = rows, find_columns(common(counts, self.options), self.options, self.path)
        return self._read

    def _value(self) -> Any:
        try:
            return json.loads(read_bytes(self.path, str(self.path)))
        except RecordError as error:
            raise UserError(f"cannot read {printable(error.problem[1])}; give another path") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{printable(self.path)} is not JSON ({error}); give another path or --format") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": None}


def _rows(value: Any, path: Path) -> list[Any]:
    if isinstance(value, dict):
        images, annotations = value.get("images"), value.get("annotations")
        if isinstance(images, list) and isinstance(annotations, list):
            return _joined(images, annotations)
        value = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), None)
    if not isinstance(value, list):
        lists = ", ".join(map(repr, _LISTS))
        raise UserError(
            f"{printable(path)} is neither a list of objects nor an object with one ({lists}); write it as .jsonl"
        )
    if not value:
        raise no_records_error(path, "rows")
    return value


def _whole_path(row: Any, folder: Path) -> Any:
    """Join the two path fields of a row of Karpathy's splits of COCO in "filename", if that file exists."""
    match row:
        case {"filepath": str(above), "filename": str(name)} if os.path.exists(folder / above / name):
            return row | {"filename": os.path.join(above, name)}
    return row


def _joined(images: list[Any], annotations: list[Any]) -> list[Any]:
    """Return COCO's annotations with the fields of their images, in order, then images without annotations."""
    by_id = {str(image["id"]): image for image in images if isinstance(image, dict) and "id" in image}
    rows: list[Any] = []
    described: set[str] = set()
    for one in annotations:
        number = str(one.get("image_id")) if isinstance(one, dict) else ""
        described.add(number)
        rows.append({**by_id.get(number, {}), **one} if isinstance(one, dict) else one)
    missing = (image for image in images if not isinstance(image, dict) or str(image.get("id")) not in described)
    return rows + [{"caption": None, **image} if isinstance(image, dict) else image for image in missing]


READERS: dict[str, Reader] = {"json": Json}
