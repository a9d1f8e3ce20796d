"""The index of a tar: where in it the members of each sample lie.

`00000.index.safetensors` beside `00000.tar`; the tar stays as img2dataset or `webdataset` wrote it: members `KEY.EXT`,
KEY up to the first dot of the base name.
"""

import json
import re
import tarfile
from collections.abc import Container
from pathlib import Path

import numpy as np

from imagen.data.mapped import save_tensors
from imagen.errors import UserError
from imagen.files import replacing

INDEX_FORMAT = "imagen-index-1"
# As WebDataset splits names: a directory belongs to the key; hidden files ("._x.jpg") belong to no sample.
MEMBER = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")


def index_path(tar: str | Path) -> Path:
    return Path(tar).with_suffix(".index.safetensors")


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
                match = MEMBER.match(info.name)
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
        "format": INDEX_FORMAT,
        "samples": str(len(members)),
        "tar_bytes": str(tar.stat().st_size),
        "extensions": json.dumps(extensions),
    }
    with replacing(index_path(tar)) as temporary:
        save_tensors(arrays, temporary, metadata)
    return index_path(tar)
