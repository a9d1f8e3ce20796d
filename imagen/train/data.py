"""The data of a run: each split is opened once, and every loader reads from it."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.buckets import Assignment
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import ShardedDataset, index_folder, splits
from imagen.data.shards.remote import as_url
from imagen.errors import UserError
from imagen.text.encoder import LazyEncoder
from imagen.text.protocol import DatasetEncoder
from imagen.train.experiment import Experiment
from imagen.train.on_the_fly import EncodingLoader, unconditional
from imagen.train.ranks import Ranks
from imagen.train.shapes import assign_buckets

AnyLoader = Loader | EncodingLoader


class TrainingData:
    """The shards of a run and the text embeddings of their captions, from sidecars or from an encoder."""

    def __init__(self, experiment: Experiment, folder: str | Path, ranks: Ranks, encoder: DatasetEncoder | None = None):
        """Open the training split. Reads headers only: no image is decoded, no encoder loaded.

        encoder: for `data.on_the_fly`; default: the one of `experiment.text`, loaded when it is first used.
        All ranks call this together. Raises UserError for missing or mismatching shards and sidecars.
        """
        self.experiment, self.folder = experiment, folder
        self._encoder = encoder
        if experiment.text is not None and experiment.data.on_the_fly:
            self._encoder = encoder or LazyEncoder(experiment.text, ranks.device)
            ranks.on_first(lambda: index_folder(folder))  # `imagen data encode` need not have been run
        if experiment.data.buckets is not None and as_url(folder) is None:
            ranks.on_first(lambda: index_folder(folder, sizes=True))
        self.splits = splits(folder)
        self._assignments: dict[str, Assignment | None] = {}
        self._opened: dict[str, tuple[ShardedDataset, Embeddings | None]] = {}
        self.training = self.dataset("train")

    def dataset(self, split: str) -> ShardedDataset:
        """Return a split, opened at the first call."""
        return self._open(split)[0]

    @property
    def validation_split(self) -> str:
        """Held-out samples if there are any, else training samples."""
        return "heldout" if "heldout" in self.splits else "train"

    @cached_property
    def unconditional(self) -> Tensor | None:
        """The unconditional embedding [L0, D], float32; None without text. May load the encoder."""
        if self._encoder is not None:
            return unconditional(self._encoder)
        embeddings = self._open("train")[1]
        return None if embeddings is None else embeddings.unconditional()

    def loader(self, config: DataConfig, *, split: str = "train", **options: Any) -> AnyLoader:
        """Return a loader of samples of the stage's size, with text. options: as for `Loader`."""
        stage, (dataset, embeddings) = self.experiment.stage, self._open(split)
        loader = Loader(
            dataset,
            config,
            resolution=stage.resolution,
            low_resolution=stage.low_resolution,
            embeddings=embeddings,
            channels=stage.unet.image_channels,
            assignment=self._assignment(split),
            **options,
        )
        return loader if self._encoder is None else EncodingLoader(loader, self._encoder)

    def training_loader(self, position: int, micro_batch: int, ranks: Ranks) -> AnyLoader:
        """Return this rank's micro-batches from the global `position` on."""
        return self.loader(
            self.experiment.data,
            group=self.experiment.data.bucket_batch or self.experiment.train.batch_size,
            batch_size=micro_batch * ranks.world_size,
            seed=self.experiment.train.seed,
            position=position,
            rank=ranks.rank,
            world_size=ranks.world_size,
            pin_memory=ranks.device.type == "cuda",
        )

    def validation_loader(self, batch_size: int, seed: int, device: torch.device, **changes: Any) -> AnyLoader:
        """Return batches of validation samples, the same ones on every rank. changes: to `experiment.data`."""
        config = replace(self.experiment.data, workers=0, **changes)
        pin_memory = device.type == "cuda"
        return self.loader(config, split=self.validation_split, batch_size=batch_size, seed=seed, pin_memory=pin_memory)

    def _assignment(self, split: str) -> Assignment | None:
        if split not in self._assignments:
            self._assignments[split] = assign_buckets(self.experiment.stage, self.experiment.data, self.dataset(split))
        return self._assignments[split]

    def _open(self, split: str) -> tuple[ShardedDataset, Embeddings | None]:
        if split not in self._opened:
            if split not in self.splits:
                raise UserError(f"{self.folder} has no split {split!r}, only {', '.join(map(repr, self.splits))}")
            text = self.experiment.text if self._encoder is None else None
            dataset = ShardedDataset(self.splits[split], self.experiment.data.shard_cache)
            self._opened[split] = dataset, None if text is None else Embeddings(dataset, text)
        return self._opened[split]
