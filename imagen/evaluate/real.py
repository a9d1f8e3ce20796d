"""Compute the features of a data set's real images, once, and cache them.

They are computed in parts, one file each, so that an interrupted computation resumes and several ranks share the work.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imagen.data.loading.config import DataConfig
from imagen.data.loading.stream import SampleReader
from imagen.data.shards.dataset import ShardedDataset
from imagen.data.shards.images import BadSample
from imagen.errors import UserError
from imagen.evaluate.extractors import Extractor
from imagen.evaluate.files import read_arrays, write_arrays
from imagen.progress import progress_bar

BATCH = 32
PART = 1024  # images per file while features are computed; a multiple of BATCH, so parts do not change the batches
# Images are read as in training, except for full_decode: scores are compared with those of other software.
READING = DataConfig(full_decode=True)


def choose(dataset: ShardedDataset, count: int | None, seed: int = 0, among: np.ndarray | None = None) -> np.ndarray:
    """Return the indices of `count` samples in random order, which depends on `seed` alone; None: all of them.

    among: bool [N], leaves out samples. Larger counts begin with the samples of smaller ones. Raises UserError if there
    are fewer.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    if among is not None:
        order = order[among[order]]
    if count is not None and count > len(order):
        usable = "samples" if among is None else "samples with large enough images"
        raise UserError(
            f"{dataset.folder} has {len(order):,} {usable}, fewer than the {count:,} requested: lower --n or "
            "--reference"
        )
    return order[:count]


def large_enough(dataset: ShardedDataset, resolution: int) -> np.ndarray:
    """Return which samples have an image of at least `resolution` pixels on each side, bool [N].

    By the sizes in the indexes: without them, all. An image with an unreadable header is not large enough.
    """
    if not dataset.has_image_sizes:
        return np.ones(len(dataset), bool)
    return dataset.image_sizes().min(1) >= resolution


def images(dataset: ShardedDataset, indices: Sequence[int], resolution: int, batch: int = BATCH) -> Iterator[Tensor]:
    """Yield batches of images, uint8 [B, 3, H, W]. Raises UserError for a damaged image."""
    reader = SampleReader(dataset, READING, resolution, None, None)
    for start in range(0, len(indices), batch):
        read = []
        for i in indices[start : start + batch]:
            try:
                read.append(reader.images(int(i))[0])
            except BadSample as error:
                where = dataset.tar_path(dataset.locate(int(i))[0])
                raise UserError(f"{dataset.key(int(i))} in {where}: {error}; remove it, or use fewer samples") from None
        yield reader.stack(read)


def real_features(
    dataset: ShardedDataset,
    indices: np.ndarray,
    resolution: int,
    extractor: Extractor,
    *,
    cache: Path | None = None,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> np.ndarray:
    """Return features [N, D] of the samples `indices` at `resolution`, from the cache if it has them.

    cache: folder (default: ~/.cache/imagen/features, or below XDG_CACHE_HOME). A file's name is a hash of the data's
    content, the samples, the resolution and the extractor. Its parts lie beside it until all are there; calling
    again continues with those that are missing.
    rank, ranks: rank r computes every `ranks`-th part. Rank 0 then computes all parts that are still missing, and
    waits for no other rank: the others may have failed, or have another cache. Other ranks return no features, [0, 0].
    """
    chosen = hashlib.sha256(indices.tobytes()).hexdigest()
    key = json.dumps([_content(dataset, indices), chosen, resolution, extractor.name])
    path = (cache or cache_folder()) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    paths = [path.with_name(f"{path.stem}-part{n:05d}.safetensors") for n in range(math.ceil(len(indices) / PART))]
    numbers = list(range(rank, len(paths), ranks))
    if rank == 0:
        # From the end: other ranks started at the beginning.
        numbers += reversed([number for number in range(len(paths)) if number % ranks != 0])
    try:
        if not path.is_file():
            _compute_parts(dataset, indices, resolution, extractor, path, paths, numbers, progress and rank == 0)
        if rank != 0:
            return np.empty((0, 0), np.float32)
        if not path.is_file():
            counts = [min(PART, len(indices) - start) for start in range(0, len(indices), PART)]
            read = [read_arrays(part, ["features"], count) for part, count in zip(paths, counts, strict=True)]
            features_ND = np.concatenate([arrays["features"] for arrays in read])
            write_arrays(path, {"features": features_ND}, {"key": key})
    except UserError:
        # Another process may have combined and deleted the parts since they were found.
        if not path.is_file():
            raise
    finally:
        if path.is_file():
            for part in paths:
                part.unlink(missing_ok=True)
    return read_arrays(path, ["features"], len(indices))["features"]


def _content(dataset: ShardedDataset, indices: np.ndarray) -> str:
    """Return a hash of the first samples, and of the position and size of every file in the shards.

    The fingerprint is not enough: tars are padded to 10 KiB, and indexes of one tar may select different samples.
    """
    digest = hashlib.sha256(dataset.fingerprint().encode())
    for index in dataset.indexes:
        digest.update(index["offset"].tobytes())
        digest.update(index["size"].tobytes())
    for i in map(int, indices[:BATCH]):
        for extension in dataset.extensions(i):
            digest.update(dataset.read(i, extension))
    return digest.hexdigest()


def _compute_parts(
    dataset: ShardedDataset,
    indices: np.ndarray,
    resolution: int,
    extractor: Extractor,
    whole: Path,
    paths: Sequence[Path],
    numbers: Sequence[int],
    progress: bool,
) -> None:
    """Write the parts `numbers` that are missing. Stop when another process has written the file `whole`."""
    with progress_bar(total=len(indices), unit="image", desc="real images", disable=not progress) as bar:
        for number in numbers:
            if whole.is_file():
                return
            chosen = indices[number * PART : (number + 1) * PART]
            if paths[number].is_file():
                bar.update(len(chosen))
                continue
            features = []
            for batch_BCHW in images(dataset, list(chosen), resolution):
                features.append(extractor(batch_BCHW).numpy())
                bar.update(len(batch_BCHW))
            write_arrays(paths[number], {"features": np.concatenate(features)})


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imagen" / "features"


def as_rgb(images_BCHW: Tensor) -> Tensor:
    """Return images of 1 or 3 channels with 3."""
    return images_BCHW if images_BCHW.shape[1] == 3 else images_BCHW.expand(-1, 3, -1, -1).to(torch.uint8)
