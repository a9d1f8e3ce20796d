"""Read WebDataset tars, as img2dataset writes them."""

import os
from collections.abc import Iterator
from pathlib import Path

from imagen.data.shards.captions import MOST_BYTES as MOST_JSON
from imagen.data.shards.captions import unpack
from imagen.data.shards.dataset import SPLITS
from imagen.data.shards.images import LARGEST, BadSample, choose_image
from imagen.data.shards.tar_samples import InvalidMember, MemberRanges, TarScan, scan_tar
from imagen.data.sources.base import Options, Part, Reader, Record
from imagen.data.sources.files import COMPRESSED, files_below
from imagen.data.sources.folder import CAPTIONS
from imagen.data.sources.values import (
    MOST_BYTES,
    Captions,
    RecordError,
    as_caption,
    captions_of_json,
    no_records_error,
    printable,
    safe_key,
)
from imagen.errors import UserError
from imagen.files import open_regular
from imagen.pictures.names import PICTURES

_COMPRESSED = (*(f".tar{ending}" for ending in COMPRESSED), ".tgz", ".tbz2", ".txz")


class WebDataset:
    """A tar, or the tars of a folder at any depth; a part is a tar.

    A complete tar gives one record per sample, bad ones included, in the order of its index, then one per member that
    belongs to no sample. The image is the one that training would read, or else one that it cannot read. The key is
    TAR/KEY, made safe.
    """

    has_columns = False
    in_place = True  # the tars are shards already: they need an index only

    def __init__(self, path: Path, options: Options):
        self.path = path
        self.root = path if path.is_dir() else path.parent

    @staticmethod
    def recognises(path: Path) -> bool:
        if not path.is_dir():
            return path.name.lower().endswith((".tar", *_COMPRESSED))
        return any(any(folder.glob("*.tar")) for folder in (path, *(path / split for split in SPLITS)))

    def parts(self) -> list[Part]:
        tars = self._tars()
        if not tars:
            raise no_records_error(self.path, "tars (*.tar, not compressed)")
        return [{"file": name} for name in tars]

    def _tars(self) -> list[str]:
        if not self.path.is_dir():
            return [self.path.name]
        names = files_below(self.path, (".tar", *_COMPRESSED))
        return sorted(names, key=lambda name: (SPLITS.index(_folder(name)) if _folder(name) in SPLITS else -1, name))

    def check_in_place(self) -> None:
        """Raise UserError for tars that training would not read in place."""
        splits = [name for name in SPLITS if self.path.is_dir() and (self.path / name).is_dir()]
        for name in self._tars():
            where = printable(self.root / name)
            if not name.endswith(".tar"):
                raise UserError(f"{where} is compressed or not named *.tar; unpack or rename it, or give --copy --out")
            if _folder(name) not in (splits or [""]):
                allowed = " or ".join(printable(self.root / split) for split in splits) or printable(self.root)
                raise UserError(f"training does not read {where}; move it to {allowed}, or give --copy --out")

    def tar(self, part: Part) -> Path:
        """Return the tar of a part."""
        return self.root / part["file"]

    def files_of(self, part: Part) -> list[Path]:
        return [self.tar(part)]

    def read(self, part: Part) -> Iterator[Record]:
        tar = self.tar(part)
        stem, shown = part["file"].removesuffix(".tar"), printable(part["file"])

        def problem(name: str, reason: str, detail: str, origin: str = shown) -> Record:
            return Record(key=safe_key(stem, name, is_free=False), origin=origin, problem=(reason, detail))

        if shown.lower().endswith(_COMPRESSED):
            yield problem(f"{stem}, end", "broken tar", "it is compressed; unpack it first")
            return
        scan = scan_tar(tar)
        samples = complete_samples(scan)
        try:
            file = open_regular(tar)
        except OSError as error:
            raise UserError(f"cannot read {printable(tar)}: {error.strerror or error}") from None
        invalid_members = list(scan.invalid_members)
        with file:
            for key, ranges in samples.items():
                name = f"{stem}/{key}"
                image = _image(ranges)
                invalid_members += _second_pictures(key, ranges, image)
                origin = f"{shown}, {printable(key)}"
                yield _record(safe_key(name, name), origin, file.fileno(), ranges, image, scan.non_files.get(key))
        for number, member in enumerate(invalid_members):
            yield problem(f"{stem}, {number}, {member.key}", *member[1:], origin=f"{shown}, {printable(member.key)}")
        if scan.problem is not None:
            detail = f"after {len(samples)} samples: {scan.problem}" if samples else f"incomplete tar: {scan.problem}"
            yield problem(f"{stem}, end", "broken tar", detail)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def complete_samples(scan: TarScan) -> dict[str, MemberRanges]:
    """Return the complete samples. In a broken tar the last one is incomplete if it lacks a member of the first."""
    samples = dict(scan.samples)
    if scan.problem is not None and samples:
        first, last = next(iter(samples)), next(reversed(samples))
        # A single sample cannot be compared with another; in img2dataset's tars the caption comes last.
        needed = samples[first].keys() if first != last else {"txt"}
        if scan.truncated_member is not None and scan.truncated_member[1] not in samples.get(
            scan.truncated_member[0], (scan.truncated_member[1],)
        ):
            del samples[scan.truncated_member[0]]
        if last in samples and not samples[last].keys() >= needed:
            del samples[last]
    return samples


def _image(ranges: MemberRanges) -> str | None:
    """Return the extension of a sample's image, preferably one that training reads; None without an image."""
    try:
        return choose_image(ranges, LARGEST)
    except BadSample:
        pictures = [name for name in ranges if name.rpartition(".")[2] in PICTURES]
        return min(pictures, key=lambda name: ("." in name, name), default=None)


def _second_pictures(key: str, ranges: MemberRanges, image: str | None) -> Iterator[InvalidMember]:
    """Yield images besides the sample's own that are not its masters or maps (KEY.64.png, KEY.seg.png)."""
    for name in ranges:
        if name in PICTURES and image in PICTURES and name != image:
            yield InvalidMember(f"{key}.{name}", "second picture", f"{key}.{image} is the image of this sample")


def _record(
    key: str, origin: str, file: int, ranges: MemberRanges, image_name: str | None, non_files: str | None
) -> Record:
    captions: Captions = (None,)
    try:
        captions = _captions(file, ranges)
        if non_files is not None and (image_name is None or captions[0] is None):
            raise RecordError("unreadable file", non_files)
        if image_name is None:
            raise RecordError("missing file", _no_picture(ranges))
        image = _read(file, *ranges[image_name])
        return Record(key=key, origin=origin, caption=captions[0], further=captions[1:], image=image)
    except RecordError as error:
        return Record(key=key, origin=origin, caption=captions[0], problem=error.problem)


def _captions(file: int, ranges: MemberRanges) -> Captions:
    """Return the captions as training reads them if there is a txt member, otherwise those of other members."""
    if "txt" not in ranges:
        for name in CAPTIONS:
            if name in ranges:
                return (_read(file, *ranges[name]),)
        return captions_of_json(_read(file, *ranges["json"]), "its json member") if "json" in ranges else (None,)
    first = _read(file, *ranges["txt"])
    if "json" not in ranges or ranges["json"][1] > MOST_JSON:
        return (first,)
    others = map(as_caption, unpack(_read(file, *ranges["json"])))
    return (first, *(caption for caption in others if _plain(caption) != _plain(first)))


def _plain(caption: str | bytes | None) -> bytes:
    data = caption if isinstance(caption, bytes) else (caption or "").encode()
    return data.removeprefix(b"\xef\xbb\xbf").strip()


def _no_picture(ranges: MemberRanges) -> str:
    names = ", ".join(f"KEY.{extension}" for extension in ranges)[:200]
    return f"no image (KEY.jpg, .png, ... or KEY.SIZE.png) among its members {names}; KEY ends at the first dot"


def _read(file: int, offset: int, size: int) -> bytes:
    if size > MOST_BYTES:
        raise RecordError("unreadable file", f"a member of {size:,} bytes, more than {MOST_BYTES:,}")
    data = os.pread(file, size, offset)
    if len(data) != size:
        raise RecordError("broken tar", f"it ends before byte {offset + size}")
    return data


READERS: dict[str, Reader] = {"webdataset": WebDataset}
