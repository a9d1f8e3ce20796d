"""Read a checkpoint's `.metadata`, in which torch stores the location of the tensors, as an untrusted file.

The file is a pickle, which torch would load without restrictions. Here it may only refer to some twenty harmless types,
so that nothing in it is executed, and its content is validated before torch uses it. It may only declare tensors: torch
would unpickle entries declared as bytes without restrictions.
"""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from imagen.files import open_regular

FILE = ".metadata"
MOST_BYTES = 2**30  # of the file: a thousand ranks with a thousand tensors each take less
DTYPES = ("float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8")

# Names that the pickle may refer to, by module. Any other name could execute code.
_HARMLESS = {
    "torch": ("Size", *DTYPES),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "ChunkStorageMetadata"),
    ),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),  # their module in Python 3.13
}
_PART = re.compile(r"__\d+_\d+\.distcp")


def read_checkpoint_metadata(checkpoint: Path) -> Metadata:
    """Return the validated metadata of the folder `checkpoint`.

    Raises ValueError if the metadata is damaged, refers to a forbidden type, or declares anything other than tensors,
    or tensors larger than the checkpoint's files; OSError if it cannot be read.
    """
    path = checkpoint / FILE
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{FILE} is larger than {MOST_BYTES} bytes")
    try:
        with open_regular(path) as file:
            metadata = _Unpickler(file).load()
        _check(metadata, {part.name: part.stat().st_size for part in checkpoint.glob("*.distcp")})
    except _ERRORS as error:
        raise ValueError(f"{FILE} cannot be read ({type(error).__name__}: {error})") from None
    return metadata


# Errors that unpickling arbitrary bytes can raise.
_ERRORS = (
    *(pickle.UnpicklingError, EOFError, AttributeError, TypeError, KeyError, IndexError, ImportError),
    *(MemoryError, RecursionError, OverflowError, NotImplementedError, UnicodeError),
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _memory_format
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _memory_format(kind: Any, name: Any) -> Any:
    """Stand in for `getattr`, by which Python 3.11.0 to 3.11.3 pickle members of an enum (3.12 and others by value)."""
    if kind is not _MEM_FORMAT_ENCODING or not isinstance(name, str) or name not in _MEM_FORMAT_ENCODING.__members__:
        raise pickle.UnpicklingError("it reads an attribute that is no memory format")
    return _MEM_FORMAT_ENCODING[name]


def _check(metadata: Any, parts: dict[str, int]) -> None:
    """Validate the metadata. parts: the checkpoint's files and their sizes in bytes."""
    _require(isinstance(metadata, Metadata), "it is not the metadata of a checkpoint")
    _require(isinstance(metadata.state_dict_metadata, dict), "it lists no tensors")
    _require(isinstance(metadata.storage_data, dict), "it has no locations of tensors")
    needed = sum(_tensor_bytes(name, about) for name, about in metadata.state_dict_metadata.items())
    for index, location in metadata.storage_data.items():
        _check_location(index, location, parts)
    _require(needed <= sum(parts.values()), f"its tensors have {needed} bytes, its files {sum(parts.values())}")


def _tensor_bytes(name: Any, about: Any) -> int:
    """Return the bytes of a tensor. Raises ValueError for a declaration that is not a valid tensor."""
    _require(isinstance(name, str), f"{name!r} is not a name")
    _require(isinstance(about, TensorStorageMetadata), f"{name} is declared as {type(about).__name__}, not as a tensor")
    dtype = about.properties.dtype
    _require(isinstance(dtype, torch.dtype) and str(dtype).removeprefix("torch.") in DTYPES, f"{name} is of {dtype}")
    size = _sizes(about.size, name)
    _require(isinstance(about.chunks, list), f"{name} has no list of chunks")
    for chunk in about.chunks:
        _require(isinstance(chunk, ChunkStorageMetadata), f"{name} has an invalid chunk")
        offsets, sizes = _sizes(chunk.offsets, name), _sizes(chunk.sizes, name)
        inside = len(offsets) == len(sizes) == len(size) and all(
            offset + length <= whole for offset, length, whole in zip(offsets, sizes, size, strict=True)
        )
        _require(inside, f"{name} has a chunk outside its shape")
    return math.prod(size) * dtype.itemsize


def _check_location(index: Any, location: Any, parts: dict[str, int]) -> None:
    _require(isinstance(index, MetadataIndex) and isinstance(index.fqn, str), "it locates something without a name")
    _require(isinstance(location, _StorageInfo), f"{index.fqn} has no location")
    file = location.relative_path
    _require(
        isinstance(file, str) and _PART.fullmatch(file) is not None, f"{index.fqn} is stored in {str(file)[:100]!r}"
    )
    _require(not getattr(location, "transform_descriptors", None), f"{index.fqn} is stored transformed")
    numbers = all(type(value) is int and value >= 0 for value in (location.offset, location.length))
    # A missing part is reported by name when it is opened.
    _require(numbers and location.offset + location.length <= parts.get(file, 2**62), f"{index.fqn} exceeds {file}")


def _sizes(values: Any, name: str) -> tuple[int, ...]:
    _require(
        isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**48 for value in values),
        f"{name} has an invalid size",
    )
    return tuple(values)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"{FILE}: {message}")
