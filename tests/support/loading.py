"""Open the loader of a data set in one call."""

from pathlib import Path
from typing import Any

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import open_split
from imagen.text.config import TextConfig


def open_loader(
    folder: str | Path, config: DataConfig, *, split: str = "train", text: TextConfig | None = None, **options: Any
) -> Loader:
    """Open a split of the data set in `folder`, with the sidecars of `text` unless it is None, and return its loader.

    options: as for `Loader`. Raises UserError if shards or sidecars are missing or do not match, and as `Loader` does.
    """
    dataset = open_split(folder, split, config.shard_cache)
    return Loader(dataset, config, embeddings=None if text is None else Embeddings(dataset, text), **options)
