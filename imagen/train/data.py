"""The data of a run: each split is opened once and shared by all loaders."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import ShardedDataset, index_folder, splits
from imagen.errors import UserError
from imagen.text.encoder import LazyEncoder
from imagen.text.protocol import DatasetEncoder
from imagen.train.experiment import Experiment
from imagen.train.on_the_fly import EncodingLoader, unconditional
from imagen.train.ranks import Ranks

AnyLoader = Loader | EncodingLoader


class TrainingData:
    """The shards of a run and the text embeddings of their captions, from sidecars or from an encoder."""

    def __init__(self, experiment: Experiment, folder: str | Path, ranks: Ranks, encoder: DatasetEncoder | None = None):
        """Open the training split. Reads headers only: no image is decoded, no encoder loaded.

        encoder: for `data.on_the_fly`; default: the encoder of `experiment.text`, loaded at its first use.
        All ranks call this together. Raises UserError for missing or mismatched shards and sidecars.
        """
        self.experiment, self.folder = experiment, folder
        self._encoder = encoder
        if experiment.text is not None and experiment.data.on_the_fly:
            self._encoder = encoder or LazyEncoder(experiment.text, ranks.device)
            ranks.on_first(lambda: index_folder(folder))  # without `imagen data encode`, there are no indexes yet
        self.splits = splits(folder)
        self._opened: dict[str, tuple[ShardedDataset, Embeddings | None]] = {}
        self.training = self.dataset("train")

    def dataset(self, split: str) -> ShardedDataset:
        """Return a split; the first call opens it."""
        return self._open(split)[0]

    @property
    def validation_split(self) -> str:
        """Name of the split used for validation: "heldout" if it exists, else "train"."""
        return "heldout" if "heldout" in self.splits else "train"

    @cached_property
    def unconditional(self) -> Tensor | None:
        """The unconditional embedding [L0, D], float32; None without text. May load the encoder."""
        if self._encoder is not None:
            return unconditional(self._encoder)
        embeddings = self._open("train")[1]
        return None if embeddings is None else embeddings.unconditional()

    def loader(self, config: DataConfig, *, split: str = "train", **options: Any) -> AnyLoader:
        """Return a loader of samples at the stage's resolution, with text. options: as for `Loader`."""
        stage, (dataset, embeddings) = self.experiment.stage, self._open(split)
        loader = Loader(
            dataset,
            config,
            resolution=stage.resolution,
            low_resolution=stage.low_resolution,
            embeddings=embeddings,
            channels=stage.unet.image_channels,
            **options,
        )
        return loader if self._encoder is None else EncodingLoader(loader, self._encoder)

    def training_loader(self, position: int, micro_batch: int, ranks: Ranks) -> AnyLoader:
        """Return a loader of this rank's micro-batches, starting at the global `position`."""
        return self.loader(
            self.experiment.data,
            batch_size=micro_batch * ranks.world_size,
            seed=self.experiment.train.seed,
            position=position,
            rank=ranks.rank,
            world_size=ranks.world_size,
            pin_memory=ranks.device.type == "cuda",
        )

    def validation_loader(self, batch_size: int, seed: int, device: torch.device, **changes: Any) -> AnyLoader:
        """Return a loader of validation samples, the same on every rank.

        changes: fields of `experiment.data` to replace.
        """
        config = replace(self.experiment.data, workers=0, **changes)
        pin_memory = device.type == "cuda"
        return self.loader(config, split=self.validation_split, batch_size=batch_size, seed=seed, pin_memory=pin_memory)

    def _open(self, split: str) -> tuple[ShardedDataset, Embeddings | None]:
        if split not in self._opened:
            if split not in self.splits:
                raise UserError(f"{self.folder} has no split {split!r}, only {', '.join(map(repr, self.splits))}")
            text = self.experiment.text if self._encoder is None else None
            dataset = ShardedDataset(self.splits[split], self.experiment.data.shard_cache)
            self._opened[split] = dataset, None if text is None else Embeddings(dataset, text)
        return self._opened[split]
