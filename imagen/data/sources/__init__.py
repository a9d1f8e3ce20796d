"""Read pairs of images and captions from common formats.

Each format has a module in this package, whose `READERS` maps the name of the format, as in `--format`, to its reader.
"""

import importlib
import pkgutil
from pathlib import Path

from imagen.data.shards.remote import as_url
from imagen.data.sources.base import CAPTION_FROM, Options, Part, Reader, Record, Source
from imagen.data.sources.files import metadata_folders
from imagen.data.sources.folder import TABLES, has_caption_files, image_outside
from imagen.data.sources.remote import open_remote
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
_WHOLE = ("huggingface", "zip")  # formats with columns that contain the images themselves
MOST_RECORDS = 1000  # per part
_METADATA = {"csv": ".csv", "tsv": ".tsv", "jsonl": ".jsonl"}  # formats of tables named metadata


def open_source(
    path: str | Path,
    format: str | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    images: str | Path | None = None,
    caption_from: str | None = None,
    join_rows: bool = True,
    records_per_part: int | None = None,
    cache: Path | None = None,
    within: Path | None = None,
) -> Source:
    """Open the pairs at `path`, a file, a folder or a URL.

    format: default detected from the files.
    image_column, caption_column: columns of a table; default: detected by common names.
    images: folder that paths of images in a table are relative to; default: the table's folder.
    caption_from: use the name of an image's folder ("folder") or of the image itself ("name") as its caption.
    join_rows: combine rows of a table with the same image into one record with several captions.
    cache: folder of downloads from a URL; default: ~/.cache/imagen/sources.
    within: read no file outside this folder, whatever the records name.
    records_per_part: at most, except for formats whose parts are files; default: 1,000, or fewer where the number of
        records is known, so that 16 processes have work.

    Raises UserError if `path` does not exist, the format is unknown or not detected, or an option does not apply to it.
    """
    if records_per_part is not None and records_per_part < 1:
        raise UserError(f"records_per_part is {records_per_part}; it must be at least 1")
    if format is not None and format not in FORMATS:
        raise UserError(f"unknown format {format!r}{suggest(format, FORMATS, 'the formats are ' + ', '.join(FORMATS))}")
    if url := as_url(path):
        options = Options(
            records_per_part=records_per_part or MOST_RECORDS,
            spread=records_per_part is None,
            image_column=image_column,
            caption_column=caption_column,
            join_rows=join_rows,
        )

        def open_local(found: Path, root: Path) -> Source:
            return open_source(
                found,
                format,
                image_column=image_column,
                caption_column=caption_column,
                caption_from=caption_from,
                join_rows=join_rows,
                records_per_part=records_per_part,
                within=root,
            )

        if images is not None:
            raise UserError("--images is for tables on a disk; download the table and its images first")
        if caption_from is not None:
            format = format or "folder"
        return open_remote(url, format, options, cache, open_local)
    path = Path(path)
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist; give the file or folder that contains the pairs")
    if not path.is_dir():
        open_given(path).close()  # raises UserError for a pipe or a device
    if caption_from is not None and caption_from not in CAPTION_FROM:
        raise UserError(f"--caption-from is {caption_from!r}; it must be {' or '.join(CAPTION_FROM)}")
    metadata_only = False
    if format is None:
        format, metadata_only = ("folder", False) if caption_from is not None else _guess(path)
    if caption_from is not None and format != "folder":
        raise UserError(f"--caption-from is for folders of images; the format {format} has captions; omit it")
    reader = FORMATS[format]
    if not reader.has_columns and (image_column is not None or caption_column is not None):
        raise UserError(f"the format {format} has no named columns; omit --image-column and --caption-column")
    if images is not None:
        if not reader.has_columns or format in _WHOLE:
            raise UserError(f"--images is for tables that name image files; omit it for the format {format}")
        if not Path(images).is_dir():
            raise UserError(f"--images {printable(images)} is not a folder")
    return reader(
        path,
        Options(
            records_per_part=records_per_part or MOST_RECORDS,
            spread=records_per_part is None,
            image_column=image_column,
            caption_column=caption_column,
            images=None if images is None else Path(images),
            caption_from=caption_from,
            join_rows=join_rows,
            metadata_only=metadata_only,
            within=within,
        ),
    )


def _guess(path: Path) -> tuple[str, bool]:
    """Return the format of `path`, and whether only its tables named metadata are meant.

    An image folder with metadata.csv is one, whatever other tables or archives it has. Images with a single table and
    without caption files are described by the table.
    """
    if path.is_dir():
        described = [name for name, ending in _METADATA.items() if metadata_folders(path, (ending,))]
        other = image_outside(path, metadata_folders(path, TABLES)) if described else None
        if len(described) == 1 and other is None:
            return described[0], True
        if len(described) > 1:
            tables = " and ".join(f"metadata{_METADATA[name]}" for name in described)
            raise UserError(f"{printable(path)} has {tables}; choose one with --format {' or '.join(described)}")
        if described and other is not None:
            raise UserError(
                f"{printable(path)} has images described by metadata{_METADATA[described[0]]} and others that are not, "
                f"such as {printable(other)}; build them separately, or give --format folder or {described[0]}"
            )
    found = [name for name, reader in FORMATS.items() if reader.recognises(path)]
    if len(found) == 2 and found[0] == "folder" and found[1] in _METADATA and not has_caption_files(path):
        found = found[1:]
    if len(found) == 1:
        return found[0], False
    what = f"may be {' or '.join(found)}" if found else "has no known format"
    raise UserError(f"{printable(path)} {what}; name it with --format ({', '.join(FORMATS)})")
