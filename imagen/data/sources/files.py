"""Find files of a source below a folder: not hidden, not written by this program, each folder once."""

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
# Files that a build, a run and a cascade write; see `imagen.data.build.parts` for files beside a tar.
_TABLES = (".rejected.jsonl", ".duplicates.jsonl")
_BESIDE_TABLES = (".tar", ".report.json", ".hashes.npy", ".index.safetensors")
_RUN = {"config.json", "metrics.jsonl"}

T = TypeVar("T")


def walk(root: Path, describe: Callable[[list[str]], T]) -> Iterator[tuple[str, T]]:
    """Yield (path relative to `root`, `describe(names in its folder)`) of files, depth first, sorted.

    Follows links. Skips hidden files and folders, and the output of this program: tables beside shards, and folders
    below `root` with a build, a run or a cascade. Broken links and pipes count as files. Raises UserError for a folder
    that cannot be read.
    """
    seen: set[tuple[int, int]] = set()  # folders by device and inode, because links may form loops

    def opened(folder: str) -> Iterator[tuple[str, bool, T]]:
        entries = _entries(root, folder, seen)
        names = _sources([name for name, is_folder in entries.items() if not is_folder], root / folder, not folder)
        if names is None:
            return
        description, wanted = describe(names), set(names)
        for name, is_folder in sorted(entries.items()):
            if is_folder or name in wanted:
                yield folder + name, is_folder, description

    stack = [opened("")]  # instead of recursion, because folders may be nested a thousand deep
    while stack:
        path, is_folder, description = next(stack[-1], ("", None, None))
        if is_folder is None:
            stack.pop()
        elif is_folder:
            stack.append(opened(f"{path}/"))
        else:
            yield path, description  # type: ignore[misc]


def files_below(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Return the paths, relative to `folder`, of files with these endings (in any case), in the order of `walk`."""
    return [path for path, _ in walk(folder, lambda names: None) if path.lower().endswith(endings)]


def has_files(folder: Path, endings: tuple[str, ...]) -> bool:
    """Return whether `folder` itself contains files of a source with these endings."""
    names = {entry.name for entry in os.scandir(folder)}
    shown = (name for name in names if name.lower().endswith(endings) and not name.startswith("."))
    return any(not is_own_table(name, names) for name in shown)


def metadata_folders(folder: Path, endings: tuple[str, ...]) -> set[str]:
    """Return `folder` ("") and its direct subfolders that contain a table of their images, such as metadata.csv."""
    wanted = {f"metadata{ending}" for ending in endings}

    def has_one(path: str | Path) -> bool:
        try:
            return any(entry.name.lower() in wanted for entry in os.scandir(path))
        except OSError:  # reported when the source is read
            return False

    inner = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name for entry in inner if has_one(entry.path)} | ({""} if has_one(folder) else set())


def is_own_table(name: str, names: set[str]) -> bool:
    """Return whether a file is a quarantine table of a build, judged by the files beside it."""
    table = next((ending for ending in _TABLES if name.endswith(ending)), None)
    if table is None:
        return False
    return any(name.removesuffix(table) + ending in names for ending in _BESIDE_TABLES) or "build.json" in names


def _entries(root: Path, folder: str, seen: set[tuple[int, int]]) -> dict[str, bool]:
    """Return for each visible name in a folder whether it is a folder; {} if the folder was visited before."""
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
    """Return `names` without files that this program wrote; None if it wrote the whole folder."""
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
