"""Read pairs of images and captions from common formats; each format has a module here and an entry in FORMATS."""

from pathlib import Path
from typing import Protocol

from imagen.data.sources.base import CAPTION_FROM, Options, Part, Record, Source
from imagen.data.sources.folder import Folder
from imagen.data.sources.huggingface import HuggingFace
from imagen.data.sources.json_table import Json
from imagen.data.sources.paddle import Cc12mBase64, Laion400m
from imagen.data.sources.parquet import Parquet
from imagen.data.sources.table import Csv, JsonLines, Tsv
from imagen.data.sources.values import printable
from imagen.data.sources.webdataset import WebDataset
from imagen.errors import UserError, suggest
from imagen.files import open_given

__all__ = ["FORMATS", "Part", "Reader", "Record", "Source", "open_source"]


class Reader(Protocol):
    """Constructor of the sources of one format. It reads no pairs."""

    has_columns: bool  # whether image_column and caption_column apply

    def __call__(self, path: Path, options: Options, /) -> Source: ...

    def recognises(self, path: Path, /) -> bool:
        """Return whether an existing path looks like this format, by its names and the beginning of its files."""
        ...


FORMATS: dict[str, Reader] = {
    "folder": Folder,
    "csv": Csv,
    "tsv": Tsv,
    "jsonl": JsonLines,
    "json": Json,
    "parquet": Parquet,
    "webdataset": WebDataset,
    "huggingface": HuggingFace,
    "cc12m_base64": Cc12mBase64,
    "laion_400m": Laion400m,
}


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
    image_column, caption_column: columns of a table; default: common names.
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
        raise UserError(f"{printable(path)} does not exist; give the file or folder that holds the pairs")
    if not path.is_dir():
        open_given(path).close()  # raises UserError for a pipe or a device
    if caption_from is not None and caption_from not in CAPTION_FROM:
        raise UserError(f"--caption-from is {caption_from!r}; it must be {' or '.join(CAPTION_FROM)}")
    format = format or ("folder" if caption_from is not None else _guess(path))
    if caption_from is not None and format != "folder":
        raise UserError(f"--caption-from is for folders of images; the format {format} has captions: omit it")
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
    what = f"may be {' or '.join(found)}" if found else "looks like no known format"
    raise UserError(f"{printable(path)} {what}; name it with --format ({', '.join(FORMATS)})")
