"""Read pairs of images and captions from common formats.

Each format has a module in this package, whose `READERS` maps the name of the format, as in `--format`, to its reader.
"""

import importlib
import pkgutil
from pathlib import Path

from imagen.data.sources.base import CAPTION_FROM, Options, Part, Reader, Record, Source
from imagen.data.sources.values import printable
from imagen.errors import UserError, suggest
from imagen.files import open_given

__all__ = ["FORMATS", "Part", "Reader", "Record", "Source", "open_source"]


def _readers() -> dict[str, Reader]:
    """Return the `READERS` of all modules of this package."""
    found: dict[str, Reader] = {}
    for module in pkgutil.iter_modules(__path__):
        found |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "READERS", {})
    return found


FORMATS = _readers()


def open_source(
    path: str | Path,
    format: str | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_from: str | None = None,
    join_rows: bool = True,
    records_per_part: int = 1000,
) -> Source:
    """Open the pairs at `path`, a file or a folder.

    format: default detected from the files.
    image_column, caption_column: columns of a table; default: detected by common names.
    caption_from: use the name of an image's folder ("folder") or of the image itself ("name") as its caption.
    join_rows: combine rows of a table with the same image into one record with several captions.
    records_per_part: at most, except for formats whose parts are files.

    Raises UserError if `path` does not exist, the format is unknown or not detected, or an option does not apply to it.
    """
    path = Path(path)
    if records_per_part < 1:
        raise UserError(f"records_per_part is {records_per_part}; it must be at least 1")
    if format is not None and format not in FORMATS:
        raise UserError(f"unknown format {format!r}{suggest(format, FORMATS)}; the formats are {', '.join(FORMATS)}")
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist; give the file or folder that contains the pairs")
    if not path.is_dir():
        open_given(path).close()  # raises UserError for a pipe or a device
    if caption_from is not None and caption_from not in CAPTION_FROM:
        raise UserError(f"--caption-from is {caption_from!r}; it must be {' or '.join(CAPTION_FROM)}")
    format = format or ("folder" if caption_from is not None else _guess(path))
    if caption_from is not None and format != "folder":
        raise UserError(f"--caption-from is for folders of images; the format {format} has captions; omit it")
    reader = FORMATS[format]
    if not reader.has_columns and (image_column is not None or caption_column is not None):
        raise UserError(f"the format {format} has no named columns; omit --image-column and --caption-column")
    return reader(
        path,
        Options(
            records_per_part=records_per_part,
            image_column=image_column,
            caption_column=caption_column,
            caption_from=caption_from,
            join_rows=join_rows,
        ),
    )


def _guess(path: Path) -> str:
    found = [name for name, reader in FORMATS.items() if reader.recognises(path)]
    if len(found) == 1:
        return found[0]
    what = f"may be {' or '.join(found)}" if found else "has no known format"
    raise UserError(f"{printable(path)} {what}; name it with --format ({', '.join(FORMATS)})")
