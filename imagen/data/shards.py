"""Shards: WebDataset tar files, an index of member offsets beside each, random access by pread.

`00000.tar` is left exactly as img2dataset or `webdataset` wrote it: members
`KEY.EXT`, KEY up to the first dot of the base name. `00000.index.safetensors`
beside it says where each member's bytes lie, so that any sample is one `pread`
away and a data set of millions opens by reading one short header a shard.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Container, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from imagen.data.mapped import MappedTensors, save_tensors
from imagen.data.remote import LISTING, Cache, Mirror, as_url, list_files
from imagen.errors import UserError
from imagen.files import replacing

SPLITS = ("train", "heldout")
_FORMAT = "imagen-index-1"
_OPEN_TARS = 64  # file handles a process keeps: far below the usual limit of 1024
# As WebDataset splits names: a directory belongs to the key; hidden files ("._x.jpg") belong to no sample.
_MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


class BadSample(Exception):
    """One sample cannot be used: broken image, no image, absurd size. The loader replaces it by another."""


@dataclass(frozen=True)
class Sample:
    """One sample, read whole."""

    key: str
    caption: str
    members: dict[str, bytes]  # by extension: {"64.png": ..., "txt": ...}


def index_path(tar: str | Path) -> Path:
    return Path(tar).with_suffix(".index.safetensors")


def caption_hash(caption: str) -> int:
    """64 bits that tell captions apart, the same on every machine (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")


class ShardWriter:
    """Writes samples into `folder/00000.tar, 00001.tar, ...`, each with its index; equal samples give equal tars.

        with ShardWriter(folder) as writer:
            writer.write({"__key__": "a1f0-blue", "64.png": png, "txt": b"an octopus on a blue background"})

    A shard appears under its name only when it is whole. A folder that already holds shards is
    refused (UserError) unless `overwrite`, which then leaves no shard of the former set behind.
    With `prefix` "00007-" the shards are `00007-000.tar, 00007-001.tar, ...`, whatever else the folder holds, and
    replace those of the same names.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, *, overwrite: bool = False, prefix: str = ""):
        self.folder = Path(folder)
        self.samples_per_shard = samples_per_shard
        self.prefix = prefix
        self.shards = 0  # finished ones
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()
        former = [] if prefix else sorted(self.folder.glob("*.tar"))
        if former and not overwrite:
            raise UserError(f"{self.folder} already holds shards; delete them or choose another folder")
        for tar in former:
            for file in (tar, *self.folder.glob(f"{tar.stem}.*.safetensors")):
                file.unlink(missing_ok=True)

    def write(self, sample: dict[str, Any]) -> None:
        """Add one sample: `__key__` (str, no dot in its last part) and bytes by extension."""
        key = sample["__key__"]
        members = {extension: value for extension, value in sample.items() if extension != "__key__"}
        for extension in members:
            if (
                extension != extension.lower()
                or not _MEMBER.match(f"{key}.{extension}")
                or "." in key.rsplit("/", 1)[-1]
            ):
                raise ValueError(f"{key!r} with extension {extension!r} is not a WebDataset name")
        if key in self._keys:
            raise ValueError(f"two samples of one shard have the key {key!r}")
        if self._tar is None:
            temporary = self._stack.enter_context(replacing(self.path(self.shards)))
            tar = tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (the stack closes it)
            self._tar = self._stack.enter_context(tar)
        for extension, value in sorted(members.items()):
            info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, uid and gid are 0: bytes depend on the samples alone
            info.size = len(value)
            self._tar.addfile(info, io.BytesIO(value))
        self._keys.add(key)
        if len(self._keys) == self.samples_per_shard:
            self._finish()

    def path(self, shard: int) -> Path:
        return self.folder / f"{self.prefix}{shard:0{3 if self.prefix else 5}d}.tar"

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar = None
        self._stack.close()  # ends the tar, then renames it
        index_shard(self.path(self.shards))
        self.shards += 1
        self._keys.clear()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        else:  # the unfinished shard's temporary file goes; a full disk becomes a UserError
            self._stack.__exit__(kind, error, trace)


def scan_tar(tar: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], bool]:
    """Where the members of a WebDataset tar lie, {key: {extension: (offset, size)}}, and whether the tar is whole.

    Reads headers only. In a tar that is not whole, the last member may end behind the file's end.
    Raises UserError naming the tar when it is missing or cannot be read.
    """
    members: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // 512) * 512
                match = _MEMBER.match(info.name)
                if match and info.isfile():
                    members.setdefault(match[1], {})[match[2].lower()] = (info.offset_data, info.size)
        with open(tar, "rb") as file:
            file.seek(end)
            # tarfile stops in silence at a header that it cannot read: only a block of zeros is a true end.
            return members, file.read(512) == bytes(512)
    except FileNotFoundError:
        raise UserError(f"{tar} is missing; restore it or give another folder") from None
    except (tarfile.TarError, EOFError):
        return members, False
    except OSError as error:
        raise UserError(f"cannot read {tar}: {error.strerror or error}") from None


def tar_keys(tar: str | Path) -> list[str]:
    """The keys of all samples of a tar, in order, whole or not; raises as `scan_tar`."""
    return list(scan_tar(Path(tar))[0])


def index_shard(tar: str | Path, keep: Container[str] | None = None) -> Path:
    """Write the index of a WebDataset tar, reading its headers only; returns the index's path.

    With `keep`, only samples with these keys are in it: for training the others are not there, and if there is
    none, or the tar is cut off behind them, it is no error.
    Raises UserError naming the tar when it is missing, is not a tar or is cut off.
    """
    tar = Path(tar)
    members, whole = scan_tar(tar)
    if keep is not None:
        members, whole = {key: parts for key, parts in members.items() if key in keep}, True
    if not whole:
        raise UserError(f"{tar} is truncated or not a tar file; copy it again, or delete it to go on without it")
    if not members and keep is None:
        raise UserError(f"{tar} holds no samples (members named KEY.EXT); delete it")

    extensions = sorted({extension for parts in members.values() for extension in parts})
    rows = [(extensions.index(extension), *place) for parts in members.values() for extension, place in parts.items()]
    keys = [key.encode() for key in members]
    arrays: dict[str, np.ndarray] = {
        "extension": np.array([row[0] for row in rows], np.int32),  # member rows, grouped by sample
        "offset": np.array([row[1] for row in rows], np.int64),
        "size": np.array([row[2] for row in rows], np.int64),
        "first_member": np.cumsum([0, *(len(parts) for parts in members.values())], dtype=np.int64),
        "key": np.frombuffer(b"".join(keys), np.uint8),
        "first_key_byte": np.cumsum([0, *map(len, keys)], dtype=np.int64),
    }
    metadata = {
        "format": _FORMAT,
        "samples": str(len(members)),
        "tar_bytes": str(tar.stat().st_size),
        "extensions": json.dumps(extensions),
    }
    with replacing(index_path(tar)) as temporary:
        save_tensors(arrays, temporary, metadata)
    return index_path(tar)


def index_folder(folder: str | Path) -> None:
    """Index every `*.tar` of `folder` (and of its splits) that has no index yet; UserError for a URL."""
    if url := as_url(folder):
        raise UserError(f"{url} can only be read; index and encode its shards on a disk, then copy the new files there")
    for split in splits(folder).values():
        for tar in sorted(Path(split).glob("*.tar")):
            if not index_path(tar).exists():
                index_shard(tar)


def splits(folder: str | Path) -> dict[str, Path | str]:
    """The splits of a data set, on disk or at a URL, by name: its `train` and `heldout`, or itself as "train"."""
    if url := as_url(folder):
        return {name: f"{url}/{name}" for name in SPLITS if list_files(f"{url}/{name}")[0]} or {"train": url}
    folder = Path(folder)
    found: dict[str, Path | str] = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    return found or {"train": folder}


def open_split(folder: str | Path, split: str = "train", cache: Cache | None = None) -> "ShardedDataset":
    """The samples of one split; UserError if the folder has no such split. `cache` is for copies from a URL."""
    found = splits(folder)
    if split not in found:
        raise UserError(f"{folder} has no split {split!r}, only {', '.join(map(repr, found))}")
    return ShardedDataset(found[split], cache)


class ShardedDataset:
    """Random access to the samples of a folder of indexed shards, in the order of their names.

    The folder may be a URL: then `folder` is the local one that its files are copied to.
    Opening reads one header a shard; arrays are mapped when first used; nothing is kept for a
    sample. Safe to fork and to pickle. Raises UserError naming the file if there is no shard,
    an index or a tar is missing, or a tar is not the one its index was made from.
    """

    def __init__(self, folder: str | Path, cache: Cache | None = None):
        where = as_url(folder) or str(Path(folder))
        parent, _, last = where.rpartition("/")
        self.root = (parent or ".") if last in SPLITS else where  # what commands are given
        self._mirror = None if as_url(folder) is None else Mirror(where, cache)
        self.folder = Path(folder) if self._mirror is None else self._mirror.folder
        if not self.folder.is_dir():
            raise UserError(f"{folder} is not a folder; make shards with `imagen data emoji`")
        names = os.listdir(self.folder) if self._mirror is None else list(self._mirror.sizes)
        ends = (".tar", ".index.safetensors")
        self.shards = sorted({name.removesuffix(end) for end in ends for name in names if name.endswith(end)})
        if not self.shards:
            remedy = (
                "make some with `imagen data emoji`"
                if self._mirror is None
                else f"list their names, one a line, in {where}/{LISTING}"
            )
            raise UserError(f"{where} holds no shards (*.tar); {remedy}")
        self.bring(index_path(f"{name}.tar").name for name in self.shards)
        self._indexes = [self._open_index(name) for name in self.shards]
        self.sizes = np.array([int(index.metadata["samples"]) for index in self._indexes], np.int64)
        self._ends = np.cumsum(self.sizes)
        self._extensions = [tuple(json.loads(index.metadata["extensions"])) for index in self._indexes]
        self._tars: OrderedDict[int, io.FileIO] = OrderedDict()

    def _open_index(self, name: str) -> MappedTensors:
        tar = self.tar_path(name)
        remedy = f"run `imagen data encode {self.root}` to index it"
        if self._mirror is not None:
            remedy = f"index the shards on a disk (`imagen data encode`) and copy the new files to {self.root}"
        try:
            size = tar.stat().st_size if self._mirror is None else self._mirror.sizes.get(tar.name)
        except FileNotFoundError:
            raise UserError(
                f"{tar} is missing though its index is there; restore it or delete {index_path(tar)}"
            ) from None
        index = MappedTensors(index_path(tar), remedy)
        if index.metadata.get("format") != _FORMAT:
            raise UserError(f"{index.path} is not an index of this version; delete it and {remedy}")
        if size not in (int(index.metadata["tar_bytes"]), None):  # None: a store that tells no sizes
            raise UserError(
                f"{tar} has {size} bytes but was indexed with {index.metadata['tar_bytes']}: cut off or replaced; "
                f"copy it again, or delete {index.path} and {remedy}"
            )
        return index

    def tar_path(self, shard: int | str) -> Path:
        return self.folder / f"{shard if isinstance(shard, str) else self.shards[shard]}.tar"

    def bring(self, names: Iterable[str]) -> None:
        """Make files beside the tars (indexes, sidecars) readable in `folder`: copy those of a URL that exist there."""
        if self._mirror is not None:
            self._mirror.bring(names)

    def beside(self, shard: int) -> list[str]:
        """Names of the files that belong to a tar: its index and sidecars."""
        names = os.listdir(self.folder) if self._mirror is None else self._mirror.sizes
        return [name for name in names if name.startswith(f"{self.shards[shard]}.") and name.endswith(".safetensors")]

    def check_cache(self, count: int) -> None:
        """UserError unless the local cache, where there is one, has room for the `count` largest tars at a time."""
        if self._mirror is None:
            return
        largest = sorted(self._tar_bytes(shard) for shard in range(len(self.shards)))[-count:]
        if sum(largest) > self._mirror.cache.bytes:
            raise UserError(
                f"data.cache_gb {self._mirror.cache.gb:g} does not hold the {len(largest)} shards of {self.root} that "
                f"are in use at a time; it must be at least {sum(largest) / 1e9:.3g}, or data.window smaller"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Sample `i` as (shard, row in it)."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, int(i - self._ends[shard] + self.sizes[shard])

    def key(self, i: int) -> str:
        shard, row = self.locate(i)
        first, last = self._indexes[shard]["first_key_byte"][row : row + 2]
        return self._indexes[shard]["key"][first:last].tobytes().decode()

    def extensions(self, i: int) -> list[str]:
        """The members of sample `i`: ["1024.png", "64.png", "txt"]."""
        shard, row = self.locate(i)
        return list(self._members(shard, row))

    def read(self, i: int, extension: str) -> bytes:
        """The bytes of one member; BadSample if the sample has no such member."""
        shard, row = self.locate(i)
        return self._read(shard, row, extension)

    def caption(self, i: int) -> str:
        """The sample's `txt` member, stripped; "" if it has none."""
        return self._caption(*self.locate(i))

    def captions(self, shard: int) -> list[str]:
        """The captions of a whole shard, in order."""
        return [self._caption(shard, row) for row in range(int(self.sizes[shard]))]

    def sample(self, i: int) -> Sample:
        """Every member of sample `i`."""
        return Sample(self.key(i), self.caption(i), {name: self.read(i, name) for name in self.extensions(i)})

    def _caption(self, shard: int, row: int) -> str:
        if "txt" not in self._members(shard, row):
            return ""
        return self._read(shard, row, "txt").decode("utf-8", errors="replace").strip()

    def _members(self, shard: int, row: int) -> dict[str, int]:
        """Extension -> row in the member arrays."""
        index, names = self._indexes[shard], self._extensions[shard]
        first, last = index["first_member"][row : row + 2].tolist()
        return {names[e]: first + j for j, e in enumerate(index["extension"][first:last].tolist())}

    def _read(self, shard: int, row: int, extension: str) -> bytes:
        member = self._members(shard, row).get(extension)
        if member is None:
            raise BadSample(f"no member .{extension}")
        size, offset = int(self._indexes[shard]["size"][member]), int(self._indexes[shard]["offset"][member])
        data = os.pread(self._tar(shard).fileno(), size, offset)
        if len(data) != size:
            raise UserError(f"{self.tar_path(shard)} ends before byte {offset + size}: it was cut off; copy it again")
        return data

    def _tar(self, shard: int) -> io.FileIO:
        # pread keeps no position, so a handle opened before a fork may be used after it.
        if shard not in self._tars:
            try:
                self._tars[shard] = self._open_tar(shard)
            except OSError as error:
                raise UserError(f"cannot read {self.tar_path(shard)}: {error.strerror or error}") from None
            if len(self._tars) > _OPEN_TARS:
                self._tars.popitem(last=False)[1].close()
        self._tars.move_to_end(shard)
        return self._tars[shard]

    def _open_tar(self, shard: int) -> io.FileIO:
        if self._mirror is None:
            return io.FileIO(self.tar_path(shard))
        # A tar that was deleted from the cache takes space until the last handle on it is closed.
        for other in [other for other, file in self._tars.items() if not os.fstat(file.fileno()).st_nlink]:
            self._tars.pop(other).close()
        return self._mirror.open(self.tar_path(shard).name, self._tar_bytes(shard))

    def _tar_bytes(self, shard: int) -> int:
        return int(self._indexes[shard].metadata["tar_bytes"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tars": OrderedDict()}
