"""Read safetensors files of integers as numpy views of a memory map.

Opening reads only the header, and a slice of a tensor touches only its own pages. Forked workers share the map, which
has no file position, so it is fork-safe. A process maps a limited number of files at a time; otherwise it would map all
shards after an epoch.
"""

import json
import math
import mmap
import os
import struct
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from imagen.errors import UserError
from imagen.files import open_regular

_DTYPES = {"U8": "u1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}


MAX_MAPS = 128  # maximum number of maps per process; a window of shards with embeddings needs fewer
open_maps: deque["weakref.ref[MappedTensors]"] = deque()  # oldest first


class MappedTensors:
    """The integer tensors of one safetensors file, by name, and its `metadata` (all strings).

    Raises UserError, naming the file and ending with `remedy`, if it is missing, is not safetensors, or has another
    size than its header gives.
    """

    def __init__(self, path: str | Path, remedy: str):
        self.path = Path(path)
        self._remedy = remedy
        self.mapping: mmap.mmap | None = None
        self._views: dict[str, np.ndarray] = {}
        try:
            with open_regular(self.path) as file:
                (length,) = struct.unpack("<Q", file.read(8))
                # The length is untrusted: a corrupt file must not allocate 2^60 bytes.
                header = json.loads(file.read(min(length, 100_000_000)))
                size = file.seek(0, 2)
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            end = max((_end(**entry) for entry in header.values()), default=0)
        except FileNotFoundError:
            raise UserError(f"{self.path} is missing; {remedy}") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        except (struct.error, ValueError, AttributeError, TypeError, KeyError, RecursionError):
            raise UserError(f"{self.path} is corrupt (not a safetensors header); {remedy}") from None
        self._start = 8 + length
        self._entries: dict[str, Any] = header
        if size != self._start + end:
            raise UserError(
                f"{self.path} is truncated ({size} bytes, but its header gives {self._start + end}); {remedy}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a read-only view (no copy) of tensor `name`. Raises UserError if it does not exist."""
        if name not in self._views:
            if name not in self._entries:
                raise UserError(f"{self.path} contains no tensor {name!r}; {self._remedy}")
            self._views[name] = self._view(**self._entries[name])
        return self._views[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Copy rows [first, last) of a tensor with one read. For large tensors, whose mapped pages would accumulate."""
        if name not in self._entries:
            raise UserError(f"{self.path} contains no tensor {name!r}; {self._remedy}")
        entry = self._entries[name]
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"][1:]
        row = dtype.itemsize * math.prod(shape)
        start, size = self._start + entry["data_offsets"][0] + first * row, (last - first) * row
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}; {self._remedy}") from None
        if len(data) != size:
            raise UserError(f"{self.path} ends before row {last} of {name!r}: it is truncated; {self._remedy}")
        return np.frombuffer(data, dtype).reshape(last - first, *shape)

    def _view(self, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, _DTYPES[dtype])
        if self.mapping is None:
            try:
                with open(self.path, "rb") as file:
                    self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise UserError(f"cannot read {self.path}: {error.strerror or error}; {self._remedy}") from None
            _keep(self)
        return np.frombuffer(self.mapping, _DTYPES[dtype], count, self._start + data_offsets[0]).reshape(shape)

    def release(self) -> None:
        """Release the map; views in use hold it until they are deleted, and the next use maps the file again."""
        self.mapping, self._views = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"mapping": None, "_views": {}}  # a spawned worker maps the file again


def _end(dtype: str, shape: list[int], data_offsets: list[int]) -> int:
    """Return the end offset of a tensor. Raises ValueError, KeyError or TypeError for an invalid header entry."""
    start, end = data_offsets
    if not 0 <= start <= end or min(shape, default=0) < 0:
        raise ValueError("an offset or a size below 0")
    if end - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError("offsets that do not fit the shape")
    return end


def _keep(tensors: MappedTensors) -> None:
    """Register a new map and release the oldest ones above the limit."""
    open_maps.append(weakref.ref(tensors))
    while len(open_maps) > MAX_MAPS:
        oldest = open_maps.popleft()()
        if oldest is not None:
            oldest.release()
