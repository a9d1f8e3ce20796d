"""Read a folder of images, at any depth, with captions beside them: `a/cat.jpg` and `a/cat.txt` or `a/cat.json`.

Alternatively the name of an image, or of its folder, is the caption.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagen.data.sources.base import Options, Part, Reader, Record, divide
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

CAPTIONS = ("txt", "caption", "text")  # in any case, by preference; one without an image is a rejected record
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")  # endings of tables such as metadata.csv
_NO_CAPTIONS = ("readme", "license", "licence", "licenses", "notice", "copying", "authors", "requirements")


class Folder:
    """Images, recognised by their file names, in the order of their paths; also captions without an image.

    The caption is the first of KEY.txt, KEY.caption, KEY.text and KEY.json that exists, in any case, where KEY is the
    image's name with its ending (cat.jpg.txt) or without. Hidden files and folders are skipped; links are followed, and
    each folder is read once. A record's key is the path without the ending. A part is a list of paths relative to the
    folder, so `parts` holds all names in memory.
    """

    has_columns = False

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.options = options
        self.caption_from = options.caption_from

    @staticmethod
    def recognises(path: Path) -> bool:
        if not path.is_dir():
            return False
        described = metadata_folders(path, TABLES)  # their images belong to tables
        if "" in described:
            return False
        return any(
            is_picture(name) and name.partition("/")[0] not in described for name, _ in walk(path, lambda names: None)
        )

    def parts(self) -> list[Part]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} is not a folder; give the folder of the images, or --format")
        found = list(_pictures(self.path))
        if self.caption_from is not None:
            found = [one for one in found if _named(one.name)]
        if not any(_named(one.name) for one in found):
            raise no_records_error(self.path, "images (jpg, png, webp, gif, bmp, tiff, ...)")
        parts = []
        for some in divide(found, self.options):
            # Images that differ only in their ending: their keys must differ too, in whichever part they are.
            twins = [one.name for one in some if one.is_twin]
            part: Part = {"files": [one.name for one in some], "twins": twins}
            # Caption files that `_captions` does not find by the stem.
            odd = {one.name: one.caption for one in some if one.caption and one.caption not in _usual(one.name)}
            parts.append(part | ({"captions": odd} if odd and self.caption_from is None else {}))
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        if not self.path.is_dir():
            raise UserError(f"{printable(self.path)} no longer exists; restore it")
        twins, odd = set(part["twins"]), part.get("captions", {})
        for name in part["files"]:
            yield self._record(name, name in twins, odd.get(name))

    def files_of(self, part: Part) -> list[Path]:
        """Return the images of a part, each with the files where its caption is, or would be."""
        odd = part.get("captions", {})
        names: list[str] = []
        for name in part["files"]:
            beside = () if self.caption_from is not None else (odd[name],) if name in odd else _usual(name)
            names += (name, *beside)
        return [self.path / name for name in names]

    def _record(self, name: str, is_twin: bool, caption: str | None) -> Record:
        stem = name.rpartition(".")[0]
        key, origin = safe_key(stem, name, is_free=not is_twin), printable(name)
        captions: Captions = (None,)
        try:
            captions = self._captions(name, stem, caption)
            if not _named(name):
                raise RecordError("missing file", f"there is no image beside {printable(name)}")
            image = read_bytes(self.path / name, origin)
            return Record(key=key, origin=origin, caption=captions[0], further=captions[1:], image=image)
        except RecordError as error:
            return Record(key=key, origin=origin, caption=captions[0], problem=error.problem)

    def _captions(self, name: str, stem: str, caption: str | None) -> Captions:
        """Read the captions from the file `caption`; None: from the usual files beside the image."""
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
    """Return the caption files that are searched for an image if the part names none."""
    stem = name.rpartition(".")[0]
    return f"{stem}.txt", f"{stem}.json"


def _from_name(name: str) -> str | bytes | None:
    """Return the last part of a path as words, with underscores as spaces; None if it is empty."""
    words = " ".join(name.rpartition("/")[2].replace("_", " ").split())
    try:
        words.encode()
    except UnicodeEncodeError:  # the name's bytes are not UTF-8
        return os.fsencode(words)
    return words or None


@dataclass(frozen=True)
class _Beside:
    """Images and captions in a folder, by file names."""

    stems: Counter[str]  # of the images
    names: frozenset[str]  # of the images
    captions: dict[str, str]  # caption file by stem


@dataclass(frozen=True)
class _Found:
    name: str  # path relative to the root
    is_twin: bool  # whether another image of its folder has the same stem
    caption: str | None  # path of the caption file relative to the root


def _look(names: list[str]) -> _Beside:
    captions: dict[str, str] = {}
    for kind in (*CAPTIONS, "json"):
        # In reverse, so that lower case takes precedence.
        for name in sorted((name for name in names if ending(name) == kind), reverse=True):
            captions.setdefault(os.path.splitext(name)[0], name)
    pictures = [name for name in names if _named(name)]
    return _Beside(Counter(os.path.splitext(name)[0] for name in pictures), frozenset(pictures), captions)


def _pictures(root: Path) -> Iterator[_Found]:
    """Yield the files of the records in order: images, and captions without an image."""
    # A broken link with the name of an image is included: its record has the problem "missing file".
    for path, beside in walk(root, _look):
        folder, slash, name = path.rpartition("/")
        stem = os.path.splitext(name)[0]
        if _named(name):
            caption = beside.captions.get(name) or beside.captions.get(stem)
            yield _Found(path, beside.stems[stem] > 1, caption and folder + slash + caption)
        elif _is_alone(name, stem, beside):
            yield _Found(path, True, path)  # a twin, so that the key of a.b.txt differs from that of an image a.b


def _is_alone(name: str, stem: str, beside: _Beside) -> bool:
    """Return whether a text file is a caption without an image."""
    has_picture = stem in beside.stems or stem in beside.names
    return ending(name) in CAPTIONS and not has_picture and stem.lower() not in _NO_CAPTIONS


def _named(name: str) -> bool:
    return ending(name) in LIKE_PICTURES


def has_caption_files(root: Path) -> bool:
    """Return whether any image below a folder has a caption file beside it."""
    return any(found.caption is not None for found in _pictures(root))


def image_outside(root: Path, folders: set[str]) -> str | None:
    """Return the path of an image that is in none of these direct subfolders of `root` ("": all are inside)."""
    if "" in folders:
        return None
    paths = (name for name, _ in walk(root, lambda names: None) if is_picture(name))
    return next((name for name in paths if name.partition("/")[0] not in folders), None)


READERS: dict[str, Reader] = {"folder": Folder}
