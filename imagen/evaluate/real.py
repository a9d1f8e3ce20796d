"""Compute the features of a data set's real images, once, and cache them."""

import hashlib
import json
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
# Images are read as in training, except for full_decode: scores are compared with those of other software.
READING = DataConfig(full_decode=True)


def choose(dataset: ShardedDataset, count: int | None, seed: int = 0) -> np.ndarray:
    """Return the indices of `count` samples in random order, which depends on `seed` alone; None: all of them.

    Larger counts begin with the samples of smaller ones. Raises UserError if there are fewer.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    if count is not None and count > len(order):
        raise UserError(f"{dataset.folder} has {len(order):,} samples, fewer than the {count:,} requested")
    return order[:count]


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
    progress: bool = True,
) -> np.ndarray:
    """Return features [N, D] of the samples `indices` at `resolution`, from the cache if it has them.

    cache: folder (default: ~/.cache/imagen/features, or below XDG_CACHE_HOME). A file's name is a hash of the data's
    fingerprint, the samples, the resolution and the extractor.
    """
    key = json.dumps([dataset.fingerprint(), hashlib.sha256(indices.tobytes()).hexdigest(), resolution, extractor.name])
    path = (cache or cache_folder()) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if path.is_file():
        return read_arrays(path)["features"]
    parts = []
    with progress_bar(total=len(indices), unit="image", desc="real images", disable=not progress) as bar:
        for batch_BCHW in images(dataset, list(indices), resolution):
            parts.append(extractor(batch_BCHW).numpy())
            bar.update(len(batch_BCHW))
    features_ND = np.concatenate(parts)
    write_arrays(path, {"features": features_ND}, {"key": key})
    return features_ND


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imagen" / "features"


def as_rgb(images_BCHW: Tensor) -> Tensor:
    """Return images of 1 or 3 channels with 3."""
    return images_BCHW if images_BCHW.shape[1] == 3 else images_BCHW.expand(-1, 3, -1, -1).to(torch.uint8)
