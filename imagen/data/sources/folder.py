"""A folder of pictures, at any depth, each with its caption beside it: `a/cat.jpg` and `a/cat.txt` or `a/cat.json`.

Or without: the name of its folder, or its own, may be the caption.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.files import metadata_folders, walk
from imagen.data.sources.values import (
    Captions,
    RecordError,
    captions_of_json,
    no_records_error,
    printable,
    read_bytes,
    safe_key,
)
from imagen.errors import UserError
from imagen.pictures.names import LIKE_PICTURES, ending, is_picture

CAPTIONS = ("txt", "caption", "text")  # in any case; the first that there is; listed where they have no picture
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")  # that say what the pictures of their folder show: metadata.csv
_NO_CAPTIONS = ("readme", "license", "licence", "licenses", "notice", "copying", "authors", "requirements")


class Folder:
    """Pictures by the ends of their names, in the order of their paths, and captions that have no picture.

    A caption is the first that there is of KEY.txt, KEY.caption, KEY.text and KEY.json, in any case, where KEY is the
    picture's name, with its ending (cat.jpg.txt) or without. Hidden files and
    folders are left out; links are followed, each folder read once. The key is the path without its ending. A part is a
    list of paths relative to the folder, so `parts` holds all names in memory.
    """

    has_columns = False

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.records_per_part = options.records_per_part
        self.caption_from = options.caption_from

    @staticmethod
    def recognises(path: Path) -> bool:
        if not path.is_dir():
            return False
        described = metadata_folders(path, TABLES)  # whose pictures are their tables'
        if "" in described:
            return False
        return any(
            is_picture(name) and name.partition("/")[0] not in described for name, _ in walk(path, lambda names: None)
        )

    def parts(self) -> list[Part]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is not a folder; give the folder of the pictures, or --format")
        found = list(_pictures(self.path))
        if self.caption_from is not None:
            found = [one for one in found if _named(one.name)]
        if not any(_named(one.name) for one in found):
            raise no_records_error(self.path, "pictures (jpg, png, webp, gif, bmp, tiff, ...)")
        parts = []
        for start in range(0, len(found), self.records_per_part):
            some = found[start : start + self.records_per_part]
            # Pictures that differ in their ending only: their keys must differ too, whatever part they are in.
            twins = [one.name for one in some if one.is_twin]
            part: Part = {"files": [one.name for one in some], "twins": twins}
            # Those that are not found by their stem alone.
            odd = {one.name: one.caption for one in some if one.caption and one.caption not in _usual(one.name)}
            parts.append(part | ({"captions": odd} if odd and self.caption_from is None else {}))
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is gone; restore it")
        twins, odd = set(part["twins"]), part.get("captions", {})
        for name in part["files"]:
            yield self._record(name, name in twins, odd.get(name))

    def _record(self, name: str, is_twin: bool, caption: str | None) -> Record:
        stem = name.rpartition(".")[0]
        key, origin = safe_key(stem, name, is_free=not is_twin), printable(name)
        captions: Captions = (None,)
        try:
            captions = self._captions(name, stem, caption)
            if not _named(name):
                raise RecordError("missing file", f"there is no picture beside {printable(name)}")
            image = read_bytes(self.path / name, origin)
            return Record(key=key, origin=origin, caption=captions[0], further=captions[1:], image=image)
        except RecordError as error:
            return Record(key=key, origin=origin, caption=captions[0], problem=error.problem)

    def _captions(self, name: str, stem: str, caption: str | None) -> Captions:
        """`caption`: the file that has it; None: the usual ones."""
        if self.caption_from is not None:
            return (_from_name(stem if self.caption_from == "name" else name.rpartition("/")[0]),)
        if caption is not None:
            data = read_bytes(self.path / caption, printable(caption))
            return captions_of_json(data, printable(caption)) if ending(caption) == "json" else (data,)
        text, json = self.path / f"{stem}.txt", self.path / f"{stem}.json"
        if os.path.exists(text):  # unlike Path.exists, False for a name that is too long
            return (read_bytes(text, printable(f"{stem}.txt")),)
        if os.path.exists(json):
            return captions_of_json(read_bytes(json, printable(f"{stem}.json")), printable(f"{stem}.json"))
        return (None,)


def _usual(name: str) -> tuple[str, str]:
    """The files that are looked for, without being named by the part, as the caption of a picture."""
    stem = name.rpartition(".")[0]
    return f"{stem}.txt", f"{stem}.json"


def _from_name(name: str) -> str | bytes | None:
    """The last part of a path as words: underscores become spaces. None where there is none."""
    words = " ".join(name.rpartition("/")[2].replace("_", " ").split())
    try:
        words.encode()
    except UnicodeEncodeError:  # the bytes on disk, which are not UTF-8
        return os.fsencode(words)
    return words or None


@dataclass(frozen=True)
class _Beside:
    """What a folder holds, by its files' names."""

    stems: Counter[str]  # of its pictures
    names: frozenset[str]  # likewise
    captions: dict[str, str]  # the file to take for each stem


@dataclass(frozen=True)
class _Found:
    name: str  # path relative to the root
    is_twin: bool  # whether another picture of its folder has the same stem
    caption: str | None  # the file that has it, likewise


def _look(names: list[str]) -> _Beside:
    captions: dict[str, str] = {}
    for kind in (*CAPTIONS, "json"):
        # Backwards: lower case comes first.
        for name in sorted((name for name in names if ending(name) == kind), reverse=True):
            captions.setdefault(os.path.splitext(name)[0], name)
    pictures = [name for name in names if _named(name)]
    return _Beside(Counter(os.path.splitext(name)[0] for name in pictures), frozenset(pictures), captions)


def _pictures(root: Path) -> Iterator[_Found]:
    """What `read` gives, in order.

    A text that looks like a caption and has no picture stands for the pair that it belongs to.
    """
    # A link that leads nowhere is kept where its name is a picture's: its record says that it is missing.
    for path, beside in walk(root, _look):
        folder, slash, name = path.rpartition("/")
        stem = os.path.splitext(name)[0]
        if _named(name):
            caption = beside.captions.get(name) or beside.captions.get(stem)
            yield _Found(path, beside.stems[stem] > 1, caption and folder + slash + caption)
        elif _is_alone(name, stem, beside):
            yield _Found(path, True, path)  # its key must not be that of a picture a.b of a.b.txt


def _is_alone(name: str, stem: str, beside: _Beside) -> bool:
    """Whether a text has no picture beside it, nor a file with the same stem that it may be the caption of."""
    has_picture = stem in beside.stems or stem in beside.names
    return ending(name) in CAPTIONS and not has_picture and stem.lower() not in _NO_CAPTIONS


def _named(name: str) -> bool:
    return ending(name) in LIKE_PICTURES


READERS: dict[str, Reader] = {"folder": Folder}
