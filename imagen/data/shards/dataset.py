"""Read samples of shards at random: WebDataset tars, each with an index of member offsets beside it.

A member takes one `pread`, and a data set with millions of samples opens by reading one short header per shard.
"""

import hashlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.shards import captions as caption_lists
from imagen.data.shards.images import BadSample, is_image
from imagen.data.shards.index import INDEX_FORMAT, add_image_sizes, index_path, index_shard
from imagen.data.shards.mapped import MappedTensors
from imagen.data.shards.remote import LISTING, CacheConfig, ShardCache, as_url, list_files
from imagen.errors import UserError

SPLITS = ("train", "heldout")
_MAKE_SHARDS = "make shards of your images with `imagen data build`, or render some with `imagen data emoji`"
_OPEN_TARS = 64  # maximum open file handles per process, far below the usual limit of 1024


def index_folder(folder: str | Path, *, sizes: bool = False) -> None:
    """Index every `*.tar` of `folder` and its splits that has no index. Raises UserError for a URL.

    sizes: also add the sizes of images to indexes of earlier versions, which lack them.
    """
    if url := as_url(folder):
        raise UserError(f"{url} is read-only; index and encode its shards on a disk, then copy the new files there")
    for split in splits(folder).values():
        for tar in sorted(Path(split).glob("*.tar")):
            if tar.name.startswith("."):
                continue
            if not index_path(tar).exists():
                index_shard(tar)
            elif sizes:
                add_image_sizes(tar)


def splits(folder: str | Path) -> dict[str, Path | str]:
    """Return the splits of a data set, a folder or a URL, by name: `train` and `heldout`, or itself as "train"."""
    if url := as_url(folder):
        return {name: f"{url}/{name}" for name in SPLITS if list_files(f"{url}/{name}")[0]} or {"train": url}
    folder = Path(folder)
    found: dict[str, Path | str] = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    return found or {"train": folder}


def check_shards(folder: str | Path) -> None:
    """Raise UserError unless `folder` exists and contains shards. Opens no file, and does not check a URL."""
    if as_url(folder) is None:
        for path in splits(folder).values():
            _shard_names(Path(path))


def open_split(folder: str | Path, split: str = "train", cache: CacheConfig | None = None) -> "ShardedDataset":
    """Open one split. cache: for shards at a URL. Raises UserError if there are no shards, or no such split."""
    check_shards(folder)
    found = splits(folder)
    if split not in found:
        remedy = "; `imagen data build --held-out` makes one" if split == "heldout" else ""
        raise UserError(f"{folder} has no split {split!r}, only {', '.join(map(repr, found))}{remedy}")
    return ShardedDataset(found[split], cache)


class ShardedDataset:
    """The samples of a folder of indexed shards, with random access, in the order of the shards' names.

    The folder may be a URL; the attribute `folder` is then the folder of its shard cache. Opening reads one header per
    shard. Arrays are mapped at first use, and no memory is held per sample. Safe to fork and to pickle. Raises
    UserError naming the file if there is no shard, an index or a tar is missing, or an index was made from another tar.
    """

    def __init__(self, folder: str | Path, cache: CacheConfig | None = None):
        where = as_url(folder) or str(Path(folder))
        parent, _, last = where.rpartition("/")
        self.root = (parent or ".") if last in SPLITS else where  # the data set's folder, for commands in messages
        self._cache = None if as_url(folder) is None else ShardCache(where, cache)
        self.folder = Path(folder) if self._cache is None else self._cache.folder
        if self._cache is None:
            self.shards = _shard_names(self.folder)
        else:
            remedy = f"list their names, one per line, in {where}/{LISTING}"
            self.shards = _names_among(self._cache.sizes, where, remedy)
        self.fetch(index_path(f"{name}.tar").name for name in self.shards)
        self.indexes = [self._open_index(name) for name in self.shards]
        self.sizes = np.array([int(index.metadata["samples"]) for index in self.indexes], np.int64)
        self._ends = np.cumsum(self.sizes)
        self._extensions = [tuple(json.loads(index.metadata["extensions"])) for index in self.indexes]
        self.open_tars: OrderedDict[int, io.FileIO] = OrderedDict()

    def _open_index(self, name: str) -> MappedTensors:
        tar = self.tar_path(name)
        remedy = f"run `imagen data encode {self.root}` to index it"
        if self._cache is not None:
            remedy = f"index the shards on a disk (`imagen data encode`) and copy the new files to {self.root}"
        try:
            size = tar.stat().st_size if self._cache is None else self._cache.sizes.get(tar.name)
        except FileNotFoundError:
            raise UserError(
                f"{tar} is missing although its index exists; restore it or delete {index_path(tar)}"
            ) from None
        index = MappedTensors(index_path(tar), remedy)
        if index.metadata.get("format") != INDEX_FORMAT:
            raise UserError(f"{index.path} is not an index of this version of imagen; delete it and {remedy}")
        if size not in (int(index.metadata["tar_bytes"]), None):  # None: the store does not report sizes
            raise UserError(
                f"{tar} has {size} bytes but was indexed with {index.metadata['tar_bytes']}: truncated or replaced; "
                f"copy it again, or delete {index.path} and {remedy}"
            )
        return index

    def tar_path(self, shard: int | str) -> Path:
        return self.folder / f"{shard if isinstance(shard, str) else self.shards[shard]}.tar"

    def fetch(self, names: Iterable[str]) -> None:
        """Copy files beside the tars (indexes, sidecars) from a URL to `folder`; skip missing ones."""
        if self._cache is not None:
            self._cache.fetch(names)

    def beside(self, shard: int) -> list[str]:
        """Return the names of the files that belong to a tar: its index and sidecars."""
        names = os.listdir(self.folder) if self._cache is None else self._cache.sizes
        return [name for name in names if name.startswith(f"{self.shards[shard]}.") and name.endswith(".safetensors")]

    def check_cache(self, count: int) -> None:
        """Raise UserError if the shard cache of a URL is smaller than the `count` largest tars together."""
        if self._cache is None:
            return
        largest = sorted(self._tar_bytes(shard) for shard in range(len(self.shards)))[-count:]
        if sum(largest) > self._cache.config.bytes:
            raise UserError(
                f"data.cache_gb {self._cache.config.gb:g} is too small for the {len(largest)} shards of {self.root} "
                f"that are in use at a time; raise it to at least {sum(largest) / 1e9:.3g}, or lower data.window"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fingerprint(self) -> str:
        """Return a hash of the shards' names, sample counts and sizes, which does not depend on the location."""
        sizes = [self._tar_bytes(shard) for shard in range(len(self.shards))]
        shards = list(zip(self.shards, self.sizes.tolist(), sizes, strict=True))
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]

    def locate(self, i: int) -> tuple[int, int]:
        """Return sample `i` as (shard, row in the shard). Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, int(i - self._ends[shard] + self.sizes[shard])

    def key(self, i: int) -> str:
        shard, row = self.locate(i)
        first, last = self.indexes[shard]["first_key_byte"][row : row + 2]
        return self.indexes[shard]["key"][first:last].tobytes().decode()

    def image_size(self, i: int) -> tuple[int, int] | None:
        """Return height and width of a sample's largest image, 0 if unreadable; None if the index does not have it."""
        shard, row = self.locate(i)
        index = self.indexes[shard]
        return (int(index["height"][row]), int(index["width"][row])) if "height" in index else None

    @property
    def has_image_sizes(self) -> bool:
        """Whether all indexes have the sizes of images: those of earlier versions lack them."""
        return all("height" in index for index in self.indexes)

    def image_sizes(self) -> np.ndarray:
        """Return height and width of the largest image of all samples, int32 [N, 2]; 0 where it is unreadable.

        Raises UserError if an index of an earlier version lacks them.
        """
        for index in self.indexes:
            if "height" not in index:
                raise UserError(
                    f"{index.path} lacks the image sizes that buckets need; run `imagen data encode` on a disk, which "
                    f"adds them, and copy the new indexes to {self.root}"
                )
        return np.concatenate([np.stack([index["height"], index["width"]], 1) for index in self.indexes])

    def image_bytes(self) -> np.ndarray:
        """Return the number of bytes of the largest image file of all samples, int64 [N]; 0 without one."""
        found = []
        for index, names in zip(self.indexes, self._extensions, strict=True):
            counts = np.array([is_image(name) for name in names], bool)[index["extension"]]
            # An empty member at the end, because `reduceat` needs one for each sample.
            found.append(np.maximum.reduceat(np.append(index["size"] * counts, 0), index["first_member"][:-1]))
        return np.concatenate(found)

    def extensions(self, i: int) -> list[str]:
        """Return the extensions of sample `i`'s members, such as ["1024.png", "64.png", "txt"]."""
        shard, row = self.locate(i)
        return list(self._members(shard, row))

    def read(self, i: int, extension: str) -> bytes:
        """Return the bytes of one member. Raises BadSample if the sample has no such member."""
        shard, row = self.locate(i)
        return self._read(shard, row, extension)

    def caption(self, i: int) -> str:
        """Return the first caption of a sample: its `txt` member, stripped; "" if it has none."""
        return self.captions(i)[0]

    def captions(self, i: int) -> list[str]:
        """Return all captions of a sample, at least one; [""] without a `txt` member."""
        return self._captions(*self.locate(i))

    def shard_captions(self, shard: int) -> list[list[str]]:
        """Return the captions of each sample of a shard, in order."""
        return [self._captions(shard, row) for row in range(int(self.sizes[shard]))]

    def _captions(self, shard: int, row: int) -> list[str]:
        members = self._members(shard, row)
        if "txt" not in members:
            return [""]
        first = self._read(shard, row, "txt").decode("utf-8", errors="replace").removeprefix("\ufeff").strip()
        json_member = members.get("json")
        if json_member is None or self.indexes[shard]["size"][json_member] > caption_lists.MOST_BYTES:
            return [first]
        return caption_lists.merge(first, caption_lists.unpack(self._read(shard, row, "json")))

    def _members(self, shard: int, row: int) -> dict[str, int]:
        """Return the row in the index's member arrays, by extension."""
        index, names = self.indexes[shard], self._extensions[shard]
        first, last = index["first_member"][row : row + 2].tolist()
        return {names[e]: first + j for j, e in enumerate(index["extension"][first:last].tolist())}

    def _read(self, shard: int, row: int, extension: str) -> bytes:
        member = self._members(shard, row).get(extension)
        if member is None:
            raise BadSample(f"no member .{extension}")
        size, offset = int(self.indexes[shard]["size"][member]), int(self.indexes[shard]["offset"][member])
        data = os.pread(self._tar(shard).fileno(), size, offset)
        if len(data) != size:
            raise UserError(f"{self.tar_path(shard)} ends before byte {offset + size}: it is truncated; copy it again")
        return data

    def _tar(self, shard: int) -> io.FileIO:
        # pread does not use the file position, so a handle opened before a fork may be used after it.
        if shard not in self.open_tars:
            try:
                self.open_tars[shard] = self._open_tar(shard)
            except OSError as error:
                raise UserError(f"cannot read {self.tar_path(shard)}: {error.strerror or error}") from None
            if len(self.open_tars) > _OPEN_TARS:
                self.open_tars.popitem(last=False)[1].close()
        self.open_tars.move_to_end(shard)
        return self.open_tars[shard]

    def _open_tar(self, shard: int) -> io.FileIO:
        if self._cache is None:
            return io.FileIO(self.tar_path(shard))
        # A tar that was deleted from the cache takes space until the last handle on it is closed.
        for other in [other for other, file in self.open_tars.items() if not os.fstat(file.fileno()).st_nlink]:
            self.open_tars.pop(other).close()
        return self._cache.open(self.tar_path(shard).name, self._tar_bytes(shard))

    def _tar_bytes(self, shard: int) -> int:
        return int(self.indexes[shard].metadata["tar_bytes"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"open_tars": OrderedDict()}


def _shard_names(folder: Path) -> list[str]:
    """Return the names of the shards in a local folder. Raises UserError if there are none."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}; {_MAKE_SHARDS}")
    return _names_among(os.listdir(folder), folder, _MAKE_SHARDS)


def _names_among(files: Iterable[str], where: str | Path, remedy: str) -> list[str]:
    """Return the sorted names of the shards among the names of files. Raises UserError if there are none."""
    ends = (".tar", ".index.safetensors")
    shown = [name for name in files if not name.startswith(".")]  # a Mac writes ._00000.tar beside 00000.tar
    shards = sorted({name.removesuffix(end) for end in ends for name in shown if name.endswith(end)})
    if not shards:
        raise UserError(f"{where} contains no shards (*.tar); {remedy}")
    return shards
