"""WebDataset tars, as img2dataset writes them, read where they lie."""

import os
from collections.abc import Iterator
from pathlib import Path

from imagen.data.shard_index import scan_tar
from imagen.data.shards import SPLITS, BadSample
from imagen.data.sources.base import Options, Part, Record
from imagen.data.sources.values import Trouble, caption_of_json, nothing, printable, safe_key
from imagen.data.transforms import choose_image
from imagen.errors import UserError

_ANY_SIDE = 1 << 30  # of several masters the largest


class WebDataset:
    """A tar, or the tars of a folder (and of its `train` and `heldout`); a part is a tar.

    The records of a whole tar come in the order of its index, one a sample, bad ones too. The picture is the one
    that training would read. The key is TAR/KEY, made safe.
    """

    has_columns = False
    in_place = True  # the tars are shards already: they need an index only

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.root = path if path.is_dir() else path.parent

    @staticmethod
    def recognises(path: Path) -> bool:
        return bool(_tars(path)) if path.is_dir() else path.name.lower().endswith(".tar")

    def parts(self) -> list[Part]:
        tars = _tars(self.path) if self.path.is_dir() else [self.path]
        if not tars:
            raise nothing(self.path, "tars (*.tar, not compressed)")
        return [{"file": str(tar.relative_to(self.root))} for tar in tars]

    def tar(self, part: Part) -> Path:
        """The tar that is the part."""
        return self.root / part["file"]

    def read(self, part: Part) -> Iterator[Record]:
        tar = self.tar(part)
        members, is_whole = scan_tar(tar)
        if not is_whole:
            members = _before_the_cut(members, tar.stat().st_size)
        stem, shown = part["file"].removesuffix(".tar"), printable(part["file"])
        try:
            file = open(tar, "rb")  # noqa: SIM115 (the message is for opening it only)
        except OSError as error:
            raise UserError(f"cannot read {printable(tar)}: {error.strerror or error}") from None
        with file:
            for key, places in members.items():
                name = f"{stem}/{key}"
                yield _record(safe_key(name, name), f"{shown}, {printable(key)}", file.fileno(), places)
        if not is_whole:
            detail = f"it ends or is damaged after {len(members)} samples" if members else "not a whole tar file"
            yield Record(
                key=safe_key(stem, f"{stem}, end", is_free=False), origin=shown, problem=("broken tar", detail)
            )


def _tars(folder: Path) -> list[Path]:
    return [tar for place in (folder, *(folder / split for split in SPLITS)) for tar in sorted(place.glob("*.tar"))]


def _before_the_cut(members: dict[str, dict[str, tuple[int, int]]], size: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Those of a broken tar that are whole: a last sample that lacks a member which the first one has is not."""
    whole = {
        key: {extension: place for extension, place in places.items() if sum(place) <= size}
        for key, places in members.items()
    }
    if whole:
        first, last = next(iter(whole)), next(reversed(whole))
        # A sample that stands alone has none to be compared with; the caption comes last in img2dataset's tars.
        needed = whole[first].keys() if first != last else {"txt"}
        if whole[last].keys() != members[last].keys() or not whole[last].keys() >= needed:
            del whole[last]
    return whole


def _record(key: str, origin: str, file: int, places: dict[str, tuple[int, int]]) -> Record:
    caption: str | bytes | None = None
    try:
        if "txt" in places:
            caption = _read(file, *places["txt"])
        elif "json" in places:
            caption = caption_of_json(_read(file, *places["json"]), "its json member")
        image = _read(file, *places[choose_image(places, _ANY_SIDE)])
        return Record(key=key, origin=origin, caption=caption, image=image)
    except BadSample as error:
        return Record(key=key, origin=origin, caption=caption, problem=("missing file", str(error)))
    except Trouble as trouble:
        return Record(key=key, origin=origin, caption=caption, problem=trouble.problem)


def _read(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    if len(data) != size:
        raise Trouble("broken tar", f"it ends before byte {offset + size}")
    return data
