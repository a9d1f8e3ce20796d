"""A folder of pictures, at any depth, each with its caption beside it: `a/cat.jpg` and `a/cat.txt` or `a/cat.json`."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagen.data.picture_names import LIKE_PICTURES, ending, is_picture
from imagen.data.sources.base import Options, Part, Record
from imagen.data.sources.files import walk
from imagen.data.sources.values import Captions, Trouble, captions_of_json, nothing, printable, read_bytes, safe_key
from imagen.errors import UserError

CAPTIONS = ("txt",)  # endings of files that are listed where they have no picture
_NO_CAPTIONS = ("readme", "license", "licence", "licenses", "notice", "copying", "authors", "requirements")


class Folder:
    """Pictures by the ends of their names, in the order of their paths, and captions that have no picture.

    Hidden files and folders are left out; links are followed, each folder read once. The key is the path without
    its ending. A part is a list of paths relative to the folder, so `parts` holds all names in memory.
    """

    has_columns = False

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.records_per_part = options.records_per_part

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_dir() and any(is_picture(name) for name, _ in walk(path, lambda names: None))

    def parts(self) -> list[Part]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is not a folder; give the folder of the pictures, or --format")
        found = list(_pictures(self.path))
        if not any(_named(name) for name, _ in found):
            raise nothing(self.path, "pictures (jpg, png, webp, gif, bmp, tiff, ...)")
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
        captions: Captions = (None,)
        try:
            captions = self._captions(stem)
            if not _named(name):
                raise Trouble("missing file", f"there is no picture beside {printable(name)}")
            image = read_bytes(self.path / name, origin)
            return Record(key=key, origin=origin, caption=captions[0], further=captions[1:], image=image)
        except Trouble as trouble:
            return Record(key=key, origin=origin, caption=captions[0], problem=trouble.problem)

    def _captions(self, stem: str) -> Captions:
        text, json = self.path / f"{stem}.txt", self.path / f"{stem}.json"
        if os.path.exists(text):  # unlike Path.exists, False for a name that is too long
            return (read_bytes(text, printable(f"{stem}.txt")),)
        if os.path.exists(json):
            return captions_of_json(read_bytes(json, printable(f"{stem}.json")), printable(f"{stem}.json"))
        return (None,)


@dataclass(frozen=True)
class _Beside:
    """What a folder holds, by its files' names."""

    stems: Counter[str]  # of its pictures
    names: frozenset[str]


def _look(names: list[str]) -> _Beside:
    return _Beside(Counter(os.path.splitext(name)[0] for name in names if _named(name)), frozenset(names))


def _pictures(root: Path) -> Iterator[tuple[str, bool]]:
    """(path relative to `root`, whether another picture of its folder has the same stem) of what `read` gives.

    A text that looks like a caption and has no picture stands for the pair that it belongs to.
    """
    # A link that leads nowhere is kept where its name is a picture's: its record says that it is missing.
    for path, beside in walk(root, _look):
        name = path.rpartition("/")[2]
        stem = os.path.splitext(name)[0]
        if _named(name):
            yield path, beside.stems[stem] > 1
        elif _is_alone(name, stem, beside):
            yield path, True  # its key must not be that of a picture a.b of a.b.txt


def _is_alone(name: str, stem: str, beside: _Beside) -> bool:
    """Whether a text has no picture beside it, nor a file with the same stem that it may be the caption of."""
    return ending(name) in CAPTIONS and stem not in beside.stems and stem.lower() not in _NO_CAPTIONS


def _named(name: str) -> bool:
    return ending(name) in LIKE_PICTURES
