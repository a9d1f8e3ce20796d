"""Read shards from a store (http, s3, gs, memory, ...) through a local shard cache of bounded size.

Indexes and embeddings are copied when the data set is opened, and are never evicted. Tars are copied at first use; if
that would exceed the bound, the least recently used ones are deleted. Any number of processes may share the cache:
locks prevent copying a file twice, a file appears under its name only when it is complete, and a deleted tar remains
readable for processes that have it open.
"""

import hashlib
import io
import logging
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from imagen.distribution import missing
from imagen.errors import UserError
from imagen.files import FULL, cannot_write
from imagen.system import lock

log = logging.getLogger(__name__)

T = TypeVar("T")

LISTING = "shards.txt"  # names of the shards, one per line, for web servers that do not list folders
RETRY_WAITS = (0.5, 2.0, 8.0)  # seconds before the second, third and fourth attempt
_CONCURRENCY = 16  # small files copied at a time
_EVICTIONS = 100  # how often a tar may be evicted between copying and opening it
_LOCKS = 64  # lock files per cache folder; file names are hashed to them
_PART = re.compile(r"\.(.+)\.(\d+)\.part")  # .NAME.SIZE.part: the size is reserved before any byte is written


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Folder of a shard cache, and the maximum size of its tars in GB (10^9 bytes)."""

    folder: Path
    gb: float = 50.0

    @property
    def bytes(self) -> int:
        return int(self.gb * 1e9)


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imagen" / "shards"


def as_url(location: str | Path) -> str | None:
    """Return `location` as a URL without a trailing slash, also if it is a Path made from a URL; None for a path."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*?)/*", str(location))  # pathlib turns // into /
    if match is None:
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


class ShardCache:
    """The files of one remote folder, and their copies in the local `folder`.

    Raises UserError, naming the URL, if the store cannot be reached or a package for it is missing.
    """

    def __init__(self, url: str, cache: CacheConfig | None = None):
        self.url = url
        self.config = cache or CacheConfig(folder=default_folder())
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.split("://", 1)[1]).strip("-.")[-80:]
        self.folder = self.config.folder / f"{name}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}"
        self.sizes, self.complete = list_files(url)
        self._make_folder()

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files that are not in the cache, several at a time; skip names that the store does not have.

        A copy of the same size counts as cached.
        """
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            for _ in pool.map(self._fetch, names):
                pass

    def _fetch(self, name: str) -> None:
        if self.complete and name not in self.sizes:
            return
        size = self.sizes.get(name)
        if size is None:
            with suppress(FileNotFoundError):
                info = retry(f"{self.url}/{name}", lambda fs, path: fs.info(path), absent=403)
                size = info.get("size") or -1
        if size is not None and not self._is_cached(name, size):
            self._copy(name, size)

    def open(self, name: str, size: int) -> io.FileIO:
        """Open tar `name` of `size` bytes; copy it first if it is not in the cache. Raises UserError."""
        path = self.folder / name
        for _ in range(_EVICTIONS):
            try:
                if not self._is_cached(name, size):
                    self._copy(name, size)
                file = io.FileIO(path)
                os.utime(file.fileno())  # marks it as used: the oldest is evicted first
                return file
            except FileNotFoundError as error:
                if error.filename is None or not str(error.filename).startswith(str(self.folder)):
                    raise UserError(f"{self.url}/{name} is missing; restore it or delete its index there") from None
                # Otherwise another process evicted it between copying and opening: try again.
        raise UserError(f"{path} is deleted as soon as it is copied; raise data.cache_gb (now {self.config.gb:g})")

    def _is_cached(self, name: str, size: int) -> bool:
        try:
            return size in ((self.folder / name).stat().st_size, -1)
        except FileNotFoundError:
            return False

    def _copy(self, name: str, size: int) -> None:
        """Copy a file of `size` bytes (-1: unknown). Raises FileNotFoundError if the store does not have it."""
        self._make_folder()  # a user may have emptied the cache
        with locked(self._lock(name)):
            if self._is_cached(name, size):  # another process was faster
                return
            part = self.folder / f".{name}.{max(size, 0)}.part"
            try:
                self._reserve(part, size if name.endswith(".tar") else 0)
                retry(f"{self.url}/{name}", lambda fs, path: download(fs, path, part, size))
                # Under the lock, so that `_contents` finds the file under one of its two names.
                with locked(self.config.folder / ".lock"):
                    os.replace(part, self.folder / name)
            except OSError as error:
                if error.errno in FULL:
                    raise cannot_write(self.folder / name, error) from None
                raise
            finally:
                part.unlink(missing_ok=True)
        log.info("copied %s/%s (%d bytes)", self.url, name, size)

    def _reserve(self, part: Path, size: int) -> None:
        """Free `size` bytes for a tar and reserve them by creating `part`; wait for other copies if necessary."""
        if size > self.config.bytes:
            raise UserError(
                f"data.cache_gb {self.config.gb:g} is less than one shard of {self.url} ({size / 1e9:g} GB)"
            )
        while True:
            with locked(self.config.folder / ".lock"):
                tars, reserved = self._contents()
                used = reserved + sum(bytes for _, bytes, _ in tars)
                while tars and used + size > self.config.bytes:
                    _, bytes, oldest = tars.pop(0)
                    oldest.unlink(missing_ok=True)
                    used -= bytes
                if used + size <= self.config.bytes or not size:
                    part.touch()
                    return
            time.sleep(0.05)

    def _contents(self) -> tuple[list[tuple[int, int, Path]], int]:
        """Return the tars in the cache as (last use, bytes, path), oldest first, and the bytes reserved by copies.

        Deletes unfinished copies of killed processes.
        """
        tars, reserved = [], 0
        for path in self.config.folder.glob("*/*"):
            with suppress(FileNotFoundError):  # finished or deleted meanwhile
                if match := _PART.fullmatch(path.name):
                    with locked(self._lock(match[1]), wait=False) as stale:
                        if stale:
                            path.unlink()
                        elif match[1].endswith(".tar"):
                            reserved += int(match[2])
                elif path.suffix == ".tar":
                    status = path.stat()
                    tars.append((status.st_mtime_ns, status.st_size, path))
        return sorted(tars), reserved

    def _lock(self, name: str) -> Path:
        return self.config.folder / f".lock-{zlib.crc32(name.encode()) % _LOCKS:02d}"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`; yield False if it is taken and `wait` is False. The lock ends with the process."""
    with open(path, "ab") as file:
        yield lock(file, wait=wait, shared_with_forks=True)


def list_files(url: str) -> tuple[dict[str, int | None], bool]:
    """Return the sizes of tars, indexes and sidecars in a remote folder by name, and whether the list is complete.

    A size is None if it is unknown. The list from a web server's `shards.txt` is incomplete: it names only shards.
    """
    if url.split("://")[0] in ("http", "https"):
        with suppress(FileNotFoundError):
            text = retry(f"{url}/{LISTING}", lambda fs, path: fs.cat_file(path), absent=403).decode()
            shards = [line.strip().removesuffix(".tar") for line in text.splitlines() if line.strip()]
            return {f"{shard}{end}": None for shard in shards for end in (".tar", ".index.safetensors")}, False
    try:
        entries = retry(url, lambda fs, path: fs.ls(path, detail=True), absent=403)
    except FileNotFoundError:
        return {}, True
    found = {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in entries if entry["type"] == "file"}
    return {name: size for name, size in found.items() if name.endswith((".tar", ".safetensors"))}, True


def retry(url: str, action: Callable[[Any, str], T], absent: int = 404) -> T:
    """Call `action` with the file system and path of `url`, with retries. Raises FileNotFoundError and UserError.

    absent: an HTTP status besides 404 that means a missing file; S3 answers 403 if listing is not allowed.
    """
    for wait in (*RETRY_WAITS, None):
        try:
            return action(*filesystem(url))
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:  # each store has its own exceptions
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            if getattr(error, "status", None) == absent:
                raise FileNotFoundError(url) from None
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            if wait is None or isinstance(error, PermissionError):
                raise UserError(f"cannot read {url}: {reason}; check the address, the access and the network") from None
            log.warning("%s: %s; trying again in %g s", url, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


UNKNOWN = -1  # size of a file


def download(fs: Any, path: str, part: Path, size: int) -> None:
    """Download a file to `part`. Raises ValueError if it does not have `size` bytes."""
    fs.get_file(path, str(part))
    found = part.stat().st_size
    if size not in (found, UNKNOWN):
        raise ValueError(f"{found} bytes arrived of {size}")


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it. Not cached, because none survives a fork."""
    protocol = url.split("://")[0]
    try:
        import fsspec

        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp's default limit of five minutes applies to the whole file.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        if error.name is None:  # fsspec's message names the package: "Install s3fs to access S3"
            raise UserError(f"cannot read {url}, a package is missing: {error}") from None
        raise missing(f"{url} needs the package {error.name}", "remote") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; fsspec supports http, https, s3, gs, hf and others") from None
