"""The data of a run: each split is opened once and shared by all loaders."""

from dataclasses import replace
from fractions import Fraction
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.buckets import Assignment
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import ShardedDataset, index_folder, splits
from imagen.data.shards.mixture import (
    AnyDataset,
    AnyEmbeddings,
    Data,
    MixedDataset,
    MixedEmbeddings,
    portions_of,
)
from imagen.data.shards.remote import as_url
from imagen.errors import UserError
from imagen.files import read_json
from imagen.text.encoder import LazyEncoder
from imagen.text.protocol import DatasetEncoder
from imagen.text.vocabulary import Vocabulary
from imagen.train.experiment import Experiment
from imagen.train.on_the_fly import EncodingLoader, unconditional
from imagen.train.ranks import Ranks
from imagen.train.shapes import assign_buckets

AnyLoader = Loader | EncodingLoader


class TrainingData:
    """The shards of a run and the text embeddings of their captions, from sidecars or from an encoder."""

    def __init__(self, experiment: Experiment, data: Data, ranks: Ranks, encoder: DatasetEncoder | None = None):
        """Open the training split. Reads headers only: no image is decoded, no encoder loaded.

        encoder: for `data.on_the_fly`; default: the encoder of `experiment.text`, loaded at its first use.
        All ranks call this together. Raises UserError for missing or mismatched shards and sidecars.
        """
        self.experiment, self.portions = experiment, portions_of(data)
        self.folder = " ".join(map(str, self.portions))
        self._encoder = encoder
        if experiment.text is not None and experiment.data.on_the_fly:
            self._encoder = encoder or LazyEncoder(experiment.text, ranks.device)
            ranks.on_first(lambda: self._index())  # without `imagen data encode`, there are no indexes yet
        if experiment.data.buckets is not None:
            ranks.on_first(lambda: self._index(sizes=True))
        self._splits = [splits(portion.location) for portion in self.portions]
        self._assignments: dict[str, Assignment | None] = {}
        self._opened: dict[str, tuple[AnyDataset, AnyEmbeddings | None]] = {}
        self.training = self.dataset("train")

    def dataset(self, split: str) -> AnyDataset:
        """Return a split; the first call opens it."""
        return self._open(split)[0]

    @property
    def shares(self) -> list[Fraction]:
        """The share of each portion in training."""
        return self.training.shares if isinstance(self.training, MixedDataset) else [Fraction(1)]

    @property
    def validation_split(self) -> str:
        """Name of the split used for validation: "heldout" if any portion has it, else "train"."""
        return "heldout" if any("heldout" in found for found in self._splits) else "train"

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What the captions name, if `dataset.json` of every portion says so, as those of generated data sets do."""
        found = [_vocabulary(portion.location) for portion in self.portions]
        return reduce(or_, (each for each in found if each is not None)) if None not in found else None

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
            assignment=self._assignment(split),
            **options,
        )
        return loader if self._encoder is None else EncodingLoader(loader, self._encoder)

    def training_loader(self, position: int, micro_batch: int, ranks: Ranks) -> AnyLoader:
        """Return a loader of this rank's micro-batches, starting at the global `position`."""
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
        """Return a loader of validation samples, the same on every rank.

        changes: fields of `experiment.data` to replace.
        """
        config = replace(self.experiment.data, workers=0, **changes)
        pin_memory = device.type == "cuda"
        return self.loader(config, split=self.validation_split, batch_size=batch_size, seed=seed, pin_memory=pin_memory)

    def _assignment(self, split: str) -> Assignment | None:
        if split not in self._assignments:
            self._assignments[split] = assign_buckets(self.experiment.stage, self.experiment.data, self.dataset(split))
        return self._assignments[split]

    def _open(self, split: str) -> tuple[AnyDataset, AnyEmbeddings | None]:
        if split not in self._opened:
            everything = list(zip(self.portions, self._splits, strict=True))
            pairs = [(portion, found) for portion, found in everything if split in found]
            if split == "train" and len(pairs) < len(everything):
                portion, found = next(pair for pair in everything if pair not in pairs)
                only = ", ".join(map(repr, found))
                raise UserError(
                    f"{portion.location} has no split 'train', only {only}; give the folder that contains it"
                )
            text = self.experiment.text if self._encoder is None else None
            parts = [ShardedDataset(found[split], self.experiment.data.shard_cache) for _, found in pairs]
            texts = [] if text is None else [Embeddings(part, text) for part in parts]
            if len(parts) == 1:
                self._opened[split] = parts[0], texts[0] if texts else None
            else:
                dataset = MixedDataset(parts, [portion.weight for portion, _ in pairs])
                self._opened[split] = dataset, MixedEmbeddings(dataset, texts) if texts else None
        return self._opened[split]

    def _index(self, sizes: bool = False) -> None:
        """Index shards that have no index. sizes: add sizes of images to local shards that lack them."""
        for portion in self.portions:
            if not sizes or as_url(portion.location) is None:
                index_folder(portion.location, sizes=sizes)


def _vocabulary(location: str | Path) -> Vocabulary | None:
    """Return the vocabulary in the description of a local data set."""
    description = Path(location) / "dataset.json"
    if as_url(location) is not None or not description.is_file():
        return None
    return Vocabulary.from_json(read_json(description))
