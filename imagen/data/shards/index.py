"""Write the index of a tar: offsets and sizes of the members of each sample, and the size of its image.

`00000.index.safetensors` is written beside `00000.tar`. The tar remains as img2dataset or `webdataset` wrote it: its
members are named `KEY.EXT`, where KEY extends to the first dot of the base name.
"""

import json
import logging
from collections.abc import Container
from itertools import pairwise
from pathlib import Path

import numpy as np

from imagen.data.shards.images import image_sizes
from imagen.data.shards.mapped import MappedTensors
from imagen.data.shards.tar_samples import scan_tar
from imagen.errors import UserError
from imagen.files import replacing
from imagen.tensors import save_tensors

log = logging.getLogger(__name__)
INDEX_FORMAT = "imagen-index-1"


def index_path(tar: str | Path) -> Path:
    return Path(tar).with_suffix(".index.safetensors")


def tar_keys(tar: str | Path) -> list[str]:
    """Return the keys of all samples of a tar, in order, accepted or not. Raises as `scan_tar` does."""
    return list(scan_tar(tar).samples)


def index_shard(tar: str | Path, keep: Container[str] | None = None) -> Path:
    """Write the index of a WebDataset tar, reading only headers of members and images, and return its path.

    keep: index only samples with these keys; training does not use the others. Then neither an empty index nor a
        damaged end of the tar is an error.

    Raises UserError naming the tar if it is missing, is not a tar or is truncated.
    """
    tar = Path(tar)
    scan = scan_tar(tar)
    members = scan.samples
    if keep is not None:
        members = {key: parts for key, parts in members.items() if key in keep}
    elif scan.problem is not None:
        raise UserError(
            f"{tar} is truncated or not a tar file ({scan.problem}); copy it again, or delete it to continue without it"
        )
    elif scan.invalid_members:
        first, count = scan.invalid_members[0], len(scan.invalid_members)
        examples = f"{first.key}: {first.reason}" + (", ..." if count > 1 else "")
        log.warning("%s: %d members belong to no sample (%s); `imagen data build` lists them", tar, count, examples)
    if not members and keep is None:
        raise UserError(f"{tar} contains no samples (members named KEY.EXT); delete it")

    extensions = sorted({extension for parts in members.values() for extension in parts})
    rows = [(extensions.index(extension), *span) for parts in members.values() for extension, span in parts.items()]
    keys = [key.encode() for key in members]
    sizes = image_sizes(tar, members.values())
    arrays: dict[str, np.ndarray] = {
        "extension": np.array([row[0] for row in rows], np.int32),  # member rows, grouped by sample
        "offset": np.array([row[1] for row in rows], np.int64),
        "size": np.array([row[2] for row in rows], np.int64),
        "first_member": np.cumsum([0, *(len(parts) for parts in members.values())], dtype=np.int64),
        "key": np.frombuffer(b"".join(keys), np.uint8),
        "first_key_byte": np.cumsum([0, *map(len, keys)], dtype=np.int64),
        "height": sizes[:, 0],
        "width": sizes[:, 1],
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


def index_samples(tar: str | Path) -> int:
    """Return the number of samples in the index of a tar. Raises UserError if there is none."""
    return int(MappedTensors(index_path(tar), f"index {tar} again").metadata["samples"])


def add_image_sizes(tar: str | Path) -> None:
    """Write the index again if it lacks the sizes of images, as one of an earlier version does, for the same samples.

    Raises UserError if the tar or its index cannot be read, or the index cannot be written.
    """
    index = MappedTensors(index_path(tar), f"delete it and index {tar} again")
    # A tar that was replaced is reported when the data set is opened.
    if "height" in index or str(Path(tar).stat().st_size) != index.metadata.get("tar_bytes"):
        return
    ends = index["first_key_byte"].tolist()
    keys = (index["key"][first:last].tobytes().decode() for first, last in pairwise(ends))
    index_shard(tar, keep=set(keys))
