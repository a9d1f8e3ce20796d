"""The index of a tar: where in it the members of each sample lie.

`00000.index.safetensors` beside `00000.tar`; the tar stays as img2dataset or `webdataset` wrote it: members `KEY.EXT`,
KEY up to the first dot of the base name.
"""

import json
import logging
from collections.abc import Container
from pathlib import Path

import numpy as np

from imagen.data.shards.tar_samples import scan_tar
from imagen.errors import UserError
from imagen.files import replacing
from imagen.tensors import save_tensors

log = logging.getLogger(__name__)
INDEX_FORMAT = "imagen-index-1"


def index_path(tar: str | Path) -> Path:
    return Path(tar).with_suffix(".index.safetensors")


def tar_keys(tar: str | Path) -> list[str]:
    """The keys of all samples of a tar, in order, whole or not; raises as `scan_tar`."""
    return list(scan_tar(tar).samples)


def index_shard(tar: str | Path, keep: Container[str] | None = None) -> Path:
    """Write the index of a WebDataset tar, reading its headers only; returns the index's path.

    With `keep`, only samples with these keys are in it: for training the others are not there, and if there is
    none, or the tar is cut off behind them, it is no error.
    Raises UserError naming the tar when it is missing, is not a tar or is cut off.
    """
    tar = Path(tar)
    scan = scan_tar(tar)
    members = scan.samples
    if keep is not None:
        members = {key: parts for key, parts in members.items() if key in keep}
    elif scan.problem is not None:
        raise UserError(
            f"{tar} is truncated or not a tar file ({scan.problem}); copy it again, or delete it to go on without it"
        )
    elif scan.strays:
        what = f"{scan.strays[0].key}: {scan.strays[0].reason}" + (", ..." if len(scan.strays) > 1 else "")
        log.warning("%s: %d things are in no sample (%s); `imagen data build` lists them", tar, len(scan.strays), what)
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
