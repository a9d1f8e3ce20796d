"""Read pairs from a store: `hf://org/name`, `s3://bucket/folder`, or any other that fsspec knows.

Parquet files are streamed: a part reads its row group alone. Everything else is downloaded first, into a cache folder,
and read from there.
"""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen.data.shards.remote import UNKNOWN, default_folder, download, retry
from imagen.data.sources.arrow import arrow_errors, pyarrow
from imagen.data.sources.base import Options, Part, Record, Source
from imagen.data.sources.parquet import Parquet
from imagen.data.sources.values import no_records_error
from imagen.errors import UserError
from imagen.files import cannot_write
from imagen.progress import progress_bar

log = logging.getLogger(__name__)
_PARQUET = (".parquet", ".parq")
_CONCURRENCY = 8  # files downloaded at a time
_READ = 1 << 22  # bytes that pyarrow reads at once


def open_remote(
    url: str, format: str | None, options: Options, cache: Path | None, open_local: Callable[[Path, Path], Source]
) -> Source:
    """Open the pairs at `url`, a file or a folder.

    cache: folder of downloads; default: ~/.cache/imagen/sources. open_local: opens a downloaded file or folder, given
        also the folder outside of which nothing may be read.
    Raises UserError if the store cannot be reached, a package for it is missing, or there are no files.
    """
    url = hub_url(url)
    sizes = _files(url)
    if format in (None, "parquet") and "" in sizes and url.lower().endswith(_PARQUET):
        folder, _, name = url.rpartition("/")
        return RemoteParquet(folder, [name], options)
    tables = [name for name in sizes if name.lower().endswith(_PARQUET)]
    if tables and format in (None, "parquet"):
        return RemoteParquet(url, tables, options)
    if format == "parquet":
        raise no_records_error(Path(url), "Parquet files")
    root, found = _download(url, sizes, cache or default_folder().parent / "sources")
    return Downloaded(open_local(found, root))


def hub_url(url: str) -> str:
    """Return the URL of a Hugging Face data set in full: hf://org/name becomes hf://datasets/org/name."""
    match = re.fullmatch(r"hf://(?!datasets/|spaces/|models/|buckets/)([^/]+/[^/]+(?:/.*)?)", url)
    return f"hf://datasets/{match[1]}" if match else url


class RemoteParquet(Parquet):
    """Parquet files in a store. Images are in the files, as bytes; paths of other files are not followed."""

    def __init__(self, url: str, names: Sequence[str], options: Options):
        super().__init__(Path(url), replace(options, within=Path(url)))  # there is no such folder
        self.url, self._names = url, list(names)

    def names(self) -> list[str]:
        return self._names

    def files_of(self, part: Part) -> list[Path]:
        return []

    def open_table(self, name: str) -> Any:
        where = f"{self.url}/{name}"
        try:
            return pyarrow("parquet").ParquetFile(io.BufferedReader(_RemoteFile(where), _READ), pre_buffer=False)
        except arrow_errors() as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where} is not a complete Parquet file ({reason})") from None


class Downloaded:
    """A source whose files were downloaded: its tars are copied into new shards, not used in place."""

    in_place = False

    def __init__(self, inner: Source):
        self.inner = inner
        self.has_columns = getattr(inner, "has_columns", False)

    def parts(self) -> Sequence[Part]:
        return self.inner.parts()

    def read(self, part: Part) -> Iterator[Record]:
        return self.inner.read(part)


class _RemoteFile(io.RawIOBase):
    """A seekable file in a store, each range of which is read with retries. Raises UserError."""

    def __init__(self, url: str):
        self.url, self._position = url, 0
        try:
            self._size = int(retry(url, lambda fs, path: fs.info(path))["size"])
        except FileNotFoundError:
            raise UserError(f"{url} does not exist") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, end = self._position, min(self._position + len(buffer), self._size)
        if start >= end:
            return 0
        data = retry(self.url, lambda fs, path: fs.cat_file(path, start=start, end=end))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _files(url: str) -> dict[str, int]:
    """Return the sizes of the visible files at or below `url`, by path relative to it ("": the file itself).

    A size that the store does not tell is UNKNOWN.
    """
    try:
        found, root = retry(url, lambda fs, path: (fs.find(path, detail=True), fs._strip_protocol(path)))
    except FileNotFoundError:
        found, root = {}, ""
    sizes = {}
    for path, info in sorted(found.items()):
        name = path.removeprefix(root).strip("/")
        parts = name.split("/")
        if name and any(part.startswith(".") or not part for part in parts):  # hidden files; also ".."
            continue
        sizes[name] = UNKNOWN if info.get("size") is None else int(info["size"])  # HTTP servers need not tell
    if not sizes:
        raise UserError(f"{url} has no files; check the address, and the access if the store is private")
    return sizes


def _download(url: str, sizes: dict[str, int], cache: Path) -> tuple[Path, Path]:
    """Download the files that `cache` does not have in their full size; return their folder, and the file or folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", url.split("://", 1)[1]).strip("-.")[-80:]
    root = cache / f"{plain}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}"
    last = url.rpartition("/")[2] if "" in sizes else ""  # a single file keeps its name, which tells its format
    targets = {f"{url}/{name}" if name else url: root / (name or last) for name in sizes}
    wanted = dict(zip(targets, sizes.values(), strict=True))
    missing = [one for one, target in targets.items() if not _is_whole(target, wanted[one])]
    if missing:
        total = sum(max(wanted[one], 0) for one in missing)
        log.info("downloading %d files (%d bytes) to %s", len(missing), total, root)
        with (
            progress_bar(total=total or None, unit="B", unit_scale=True, desc=f"download {url}") as bar,
            ThreadPoolExecutor(_CONCURRENCY) as pool,
        ):
            for size in pool.map(lambda one: _fetch(one, targets[one], wanted[one]), missing):
                bar.update(size)
    return root, root / last if last else root


def _is_whole(target: Path, size: int) -> bool:
    return target.is_file() and size in (UNKNOWN, target.stat().st_size)  # it got its name when it was complete


def _fetch(url: str, target: Path, size: int) -> int:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        retry(url, lambda fs, path: download(fs, path, part, size))
        found = part.stat().st_size
        os.replace(part, target)
    except OSError as error:
        raise cannot_write(target, error) from None
    finally:
        part.unlink(missing_ok=True)
    return found
