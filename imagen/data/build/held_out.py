"""Hold samples out for validation: which ones, and a writer per split."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen.data.build.quality import AcceptedRecord
from imagen.data.embed.sidecar import write_sidecar
from imagen.data.shards.captions import pack
from imagen.data.shards.dataset import SPLITS
from imagen.data.shards.writer import ShardWriter
from imagen.text.config import TextConfig

TRAIN, HELD_OUT = SPLITS


@dataclass(frozen=True)
class HeldOut:
    """The share of samples to hold out, chosen at random as a function of seed and key."""

    share: float  # above 0, below 1
    seed: int = 0

    def includes(self, key: str) -> bool:
        digest = hashlib.blake2b(f"{self.seed}/{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


class SplitWriters:
    """Writes the samples of one part: to `folder`, or with `held_out` to its subfolders `train` and `heldout`.

    text: describes the embeddings of the samples; None: there are none.
    """

    def __init__(
        self, folder: Path, samples_per_shard: int, prefix: str, text: TextConfig | None, held_out: HeldOut | None
    ):
        self.held_out = held_out
        names = [""] if held_out is None else [TRAIN, HELD_OUT]
        self._writers = {name: _Writer(folder / name, samples_per_shard, prefix, text) for name in names}
        self._hashes: list[tuple[str, int, int, int]] = []  # split, pixel hash, row of the split, captions
        self._stack = ExitStack()

    def write(self, key: str, good: AcceptedRecord, sizes: tuple[int, ...]) -> None:
        """Write a sample to its split. sizes: of the masters that are stored in place of the image, if any."""
        split = "" if self.held_out is None else HELD_OUT if self.held_out.includes(key) else TRAIN
        row = self._writers[split].write(key, good, sizes)
        self._hashes.append((split, good.pixel_hash, row, len(good.captions)))

    @property
    def tars(self) -> list[Path]:
        return [tar for writer in self._writers.values() for tar in writer.tars]

    @property
    def hashes(self) -> list[tuple[int, int, int]]:
        """Pixel hash, row among all samples of `tars`, and number of captions of each sample, in the order written."""
        first = {TRAIN: 0, "": 0, HELD_OUT: self._writers[TRAIN].rows if TRAIN in self._writers else 0}
        return [(pixel_hash, first[split] + row, captions) for split, pixel_hash, row, captions in self._hashes]

    def __enter__(self) -> "SplitWriters":
        for writer in self._writers.values():
            self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class _Writer:
    """Writes shards with their sidecars."""

    def __init__(self, folder: Path, samples_per_shard: int, prefix: str, text: TextConfig | None):
        self.text = text
        self.tars: list[Path] = []
        self.rows = 0  # samples written
        self._writer = ShardWriter(folder, samples_per_shard, prefix=prefix)
        self._captions: list[list[str]] = []
        self._bits: list[np.ndarray] = []

    def write(self, key: str, good: AcceptedRecord, sizes: tuple[int, ...]) -> int:
        """Write a sample; return its row."""
        members = {**good.members(sizes), "txt": good.caption.encode()}
        if len(good.captions) > 1:
            members["json"] = pack(good.captions)
        self._writer.write({"__key__": key, **members})
        self._captions.append(list(good.captions))
        self._bits += [] if good.bits is None else [good.bits]
        self.rows += 1
        self._finish()
        return self.rows - 1

    def _finish(self) -> None:
        """Write the sidecar of a shard that has just been completed."""
        if self._writer.shards == len(self.tars):
            return
        self.tars.append(self._writer.path(len(self.tars)))
        if self.text is not None:
            # The source has no embedding of "": an empty one is stored, which training reports as missing.
            empty = np.empty((0, self.text.width), np.uint16)
            write_sidecar(self.tars[-1], self.text, self._captions, self._bits, empty)
        self._captions.clear()
        self._bits.clear()

    def __enter__(self) -> "_Writer":
        self._writer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)
        if error[0] is None:
            self._finish()
