"""The files below a folder that may be a source's: not hidden, not made by this program, each folder once."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from imagen.data.sources.values import printable
from imagen.errors import UserError
from imagen.files import open_regular

BUILD_FORMAT = "imagen-build-1"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")
# What a build, a run and a cascade leave; `imagen.data.build.parts` says which files beside a tar.
_TABLES = (".rejected.jsonl", ".duplicates.jsonl")
_BESIDE_TABLES = (".tar", ".report.json", ".hashes.npy", ".index.safetensors")
_RUN = {"config.json", "metrics.jsonl"}

T = TypeVar("T")


def walk(root: Path, look: Callable[[list[str]], T]) -> Iterator[tuple[str, T]]:
    """(path relative to `root`, what `look` makes of the names in its folder) of files, depth first, sorted.

    Links are followed. Left out are hidden files and folders and what this program made: tables beside shards, and
    folders below `root` with a build, a run or a cascade. A link that leads nowhere and a pipe are files, too.
    Raises UserError for a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()  # folders by device and inode: a link may lead back, or twice to one place

    def opened(folder: str) -> Iterator[tuple[str, bool, T]]:
        entries = _entries(root, folder, seen)
        names = _sources([name for name, is_folder in entries.items() if not is_folder], root / folder, not folder)
        if names is None:
            return
        looked, wanted = look(names), set(names)
        for name, is_folder in sorted(entries.items()):
            if is_folder or name in wanted:
                yield folder + name, is_folder, looked

    stack = [opened("")]  # of folders begun: a thousand may lie in one another
    while stack:
        path, is_folder, looked = next(stack[-1], ("", None, None))
        if is_folder is None:
            stack.pop()
        elif is_folder:
            stack.append(opened(f"{path}/"))
        else:
            yield path, looked  # type: ignore[misc]


def files_below(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The paths, relative to `folder`, of files with these endings (in any case), in the order of `walk`."""
    return [path for path, _ in walk(folder, lambda names: None) if path.lower().endswith(endings)]


def has_files(folder: Path, endings: tuple[str, ...]) -> bool:
    """Whether a source's files with these endings lie in `folder` itself."""
    names = {entry.name for entry in os.scandir(folder)}
    shown = (name for name in names if name.lower().endswith(endings) and not name.startswith("."))
    return any(not is_own_table(name, names) for name in shown)


def metadata_folders(folder: Path, endings: tuple[str, ...]) -> set[str]:
    """`folder` ("") and folders directly in it that have a table of their pictures: metadata.csv, say, in any case."""
    wanted = {f"metadata{ending}" for ending in endings}

    def has_one(place: str | Path) -> bool:
        try:
            return any(entry.name.lower() in wanted for entry in os.scandir(place))
        except OSError:  # said when the source is read
            return False

    inner = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name for entry in inner if has_one(entry.path)} | ({""} if has_one(folder) else set())


def is_own_table(name: str, names: set[str]) -> bool:
    """Whether a file is a quarantine table of a build, by what lies beside it."""
    table = next((ending for ending in _TABLES if name.endswith(ending)), None)
    if table is None:
        return False
    return any(name.removesuffix(table) + ending in names for ending in _BESIDE_TABLES) or "build.json" in names


def _entries(root: Path, folder: str, seen: set[tuple[int, int]]) -> dict[str, bool]:
    """Whether each visible name in a folder is a folder; none if the folder was seen before."""
    try:
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in seen:
            return {}
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(root / folder) as entries:
            return {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        where = printable(root / folder)
        where = where if len(where) < 300 else f"{where[:200]}...{where[-50:]}"
        raise UserError(f"cannot read {where}: {error.strerror}; make it readable or move it away") from None


def _sources(names: list[str], folder: Path, is_root: bool) -> list[str] | None:
    """`names` without those that this program made; None for a folder that is all its own."""
    here = set(names)
    if not is_root and (here >= _RUN or "cascade.json" in here or _is_build(folder, here)):
        return None
    return [name for name in names if not is_own_table(name, here)]


def _is_build(folder: Path, names: set[str]) -> bool:
    if "build.json" not in names:
        return False
    with suppress(OSError), open_regular(folder / "build.json") as file:
        return BUILD_FORMAT.encode() in file.read(200)
    return False
