"""Write shards: WebDataset tar files, each with its index."""

import io
import tarfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from imagen.data.shards.index import index_shard
from imagen.data.shards.tar_samples import MEMBER
from imagen.errors import UserError
from imagen.files import replacing


class ShardWriter:
    """Write samples to `folder/00000.tar, 00001.tar, ...`, each with its index. Equal samples give equal tars.

        with ShardWriter(folder) as writer:
            writer.write({"__key__": "a1f0-blue", "64.png": png, "txt": b"an octopus on a blue background"})

    A shard appears under its name only when it is complete. Raises UserError if the folder already contains shards,
    unless `overwrite`, which deletes all of them first. With `prefix` "00007-" the shards are `00007-000.tar,
    00007-001.tar, ...`; they replace shards of the same names and leave all other files unchanged.
    """

    def __init__(self, folder: str | Path, samples_per_shard: int = 1000, *, overwrite: bool = False, prefix: str = ""):
        self.folder = Path(folder)
        self.samples_per_shard = samples_per_shard
        self.prefix = prefix
        self.shards = 0  # number of finished shards
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()
        former = [] if prefix else sorted(self.folder.glob("*.tar"))
        if former and not overwrite:
            raise UserError(f"{self.folder} already contains shards; delete them or choose another folder")
        for tar in former:
            for file in (tar, *self.folder.glob(f"{tar.stem}.*.safetensors")):
                file.unlink(missing_ok=True)

    def write(self, sample: dict[str, Any]) -> None:
        """Add one sample: `__key__` (str without a dot in its last part) and bytes by extension.

        Raises ValueError for a key or extension that is not a WebDataset name, and for a key that the shard has.
        """
        key = sample["__key__"]
        members = {extension: value for extension, value in sample.items() if extension != "__key__"}
        for extension in members:
            if (
                extension != extension.lower()
                or not MEMBER.match(f"{key}.{extension}")
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
            info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, uid and gid are 0, so equal samples give equal bytes
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
        self._stack.close()  # finishes the tar, then renames it
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
        else:  # deletes the unfinished shard's temporary file; a full disk becomes a UserError
            self._stack.__exit__(kind, error, trace)
