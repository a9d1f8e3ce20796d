"""A folder of pictures, at any depth, each with its caption beside it: `a/cat.jpg` and `a/cat.txt` or `a/cat.json`."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imagen.data.sources.base import Options, Part, Record
from imagen.data.sources.values import PICTURES, Trouble, caption_of_json, nothing, printable, read_bytes, safe_key
from imagen.errors import UserError


class Folder:
    """Pictures by the ends of their names (PICTURES), in the order of their paths.

    Hidden files and folders are left out; links are followed, each folder read once. The key is the path without
    its ending. A part is a list of paths relative to the folder, so `parts` holds all names in memory.
    """

    has_columns = False

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.records_per_part = options.records_per_part

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and next(_pictures(path), None) is not None

    def parts(self) -> list[Part]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is not a folder; give the folder of the pictures, or --format")
        found = list(_pictures(self.path))
        if not found:
            raise nothing(self.path, f"pictures ({', '.join(PICTURES)})")
        parts = []
        for start in range(0, len(found), self.records_per_part):
            some = found[start : start + self.records_per_part]
            # Pictures that differ in their ending only: their keys must differ too, whatever part they are in.
            twins = [name for name, is_twin in some if is_twin]
            parts.append({"files": [name for name, _ in some], "twins": twins})
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is gone; restore it")
        twins = set(part["twins"])
        for name in part["files"]:
            yield self._record(name, name in twins)

    def _record(self, name: str, is_twin: bool) -> Record:
        stem = name.rpartition(".")[0]
        key, origin = safe_key(stem, name, is_free=not is_twin), printable(name)
        caption = None
        try:
            caption = self._caption(stem)
            return Record(key=key, origin=origin, caption=caption, image=read_bytes(self.path / name, origin))
        except Trouble as trouble:
            return Record(key=key, origin=origin, caption=caption, problem=trouble.problem)

    def _caption(self, stem: str) -> str | bytes | None:
        text, json = self.path / f"{stem}.txt", self.path / f"{stem}.json"
        if os.path.exists(text):  # unlike Path.exists, False for a name that is too long
            return read_bytes(text, printable(f"{stem}.txt"))
        if os.path.exists(json):
            return caption_of_json(read_bytes(json, printable(f"{stem}.json")), printable(f"{stem}.json"))
        return None


def _pictures(root: Path) -> Iterator[tuple[str, bool]]:
    """(path relative to `root`, whether another picture of its folder has the same stem), depth first, sorted."""
    seen: set[tuple[int, int]] = set()  # folders by device and inode: a link may lead back, or twice to one place

    def walk(folder: str) -> Iterator[tuple[str, bool]]:
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                # A link that leads nowhere is kept where its name is a picture's: its record says that it is missing.
                entry_is_folder = {e.name: e.is_dir() for e in entries if not e.name.startswith(".")}
        except OSError as error:
            where = printable(root / folder)
            raise UserError(f"cannot read {where}: {error.strerror}; make it readable or move it away") from None
        stems = Counter(
            os.path.splitext(n)[0] for n, is_folder in entry_is_folder.items() if _named(n) and not is_folder
        )
        for name, is_folder in sorted(entry_is_folder.items()):
            if is_folder:
                yield from walk(f"{folder}{name}/")
            elif _named(name):
                yield folder + name, stems[os.path.splitext(name)[0]] > 1

    return walk("")


def _named(name: str) -> bool:
    return name.lower().endswith(PICTURES)
