"""Open what the doctor examines: a training run, a cascade, or shards; everything is loaded at its first use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from imagen.cascade import Cascade, Stage
from imagen.cascade.storage import Manifest, read_manifest, read_tensors, resolve_folder
from imagen.data.embed.sidecar import Embeddings
from imagen.data.loading.batches import Batch
from imagen.data.loading.buckets import Assignment, assign
from imagen.data.loading.config import DataConfig
from imagen.data.loading.loader import Loader
from imagen.data.shards.dataset import ShardedDataset, open_split, splits
from imagen.data.shards.remote import as_url
from imagen.devices import default_device
from imagen.doctor.finding import Skip
from imagen.doctor.run import RunFiles
from imagen.errors import UserError
from imagen.precision import autocast_dtype
from imagen.stage.config import StageConfig
from imagen.stage.weights import build_unet
from imagen.text.config import EMBEDDED_ENCODER, TextConfig
from imagen.text.embeddings import pad_embeddings
from imagen.text.protocol import Encoder
from imagen.train.experiment import Experiment
from imagen.train.shapes import leave_out_small, run_buckets
from imagen.weights import CASCADES

T = TypeVar("T")
Kind = Literal["run", "cascade", "shards"]
IMAGES, PIXELS = 32, 32 * 64**2  # of a batch of data that a network is measured on; at least 4 images
# Prompts where there are no data; their objects and colours are common.
PROMPTS = (
    "an octopus on a blue background",
    "a red apple on a white background",
    "a violin on a yellow background",
    "a house on a green background",
    "a cat on a pink background",
    "a bicycle on an orange background",
    "a tree on a grey background",
    "a cup of coffee on a black background",
)
NEEDS_DATA = "needs images with captions: give --data SHARDS"


class Subject:
    """Hold what is examined.

    path: a training run, a cascade (folder, packaged name, or org/name on the hub), or a folder or URL of shards.
    data: shards to measure a run or a cascade on. quick: measure on fewer samples, and leave slow checks out.
    encoder: text encoder of the captions; default: the one that the cascade or run names, loaded if it is needed.
    cascade: examine this one, already loaded, in place of a folder; `path` is then only its name.

    Raises UserError if the path is nothing of these.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        data: str | Path | None = None,
        quick: bool = False,
        encoder: Encoder | None = None,
        cascade: Cascade | None = None,
    ):
        self.path, self.name, self.quick, self.encoder = Path(path), str(path), quick, encoder
        self.data, self._given = data, cascade
        self.say: Callable[[str], None] = lambda text: None  # receives what is being measured
        self.kind: Kind = "cascade" if cascade is not None else _kind(path)
        if self.kind == "shards":
            if data is not None:
                raise UserError(f"{path} are shards themselves; --data is for a run or a cascade")
            self.data = path
        self.run = RunFiles(self.path) if self.kind == "run" else None
        self.device = torch.device(default_device())
        self.dtype = autocast_dtype(self.device)
        self._batches: dict[tuple[int, str], Batch] = {}
        self._shaped: dict[tuple[int, str], list[Batch]] = {}
        self.cache: dict[Any, Any] = {}  # what several checks share, such as samples
        _ = self.stages  # a damaged config or a missing folder is reported at once
        if self.data is not None:
            _ = self.datasets

    @cached_property
    def experiment(self) -> Experiment | None:
        """The config of a run; None for a cascade or shards."""
        return None if self.run is None else self.run.experiment

    @property
    def training(self) -> RunFiles:
        """The files of a run. Raises Skip for a cascade or shards."""
        if self.run is None:
            raise Skip("only a training run has a log, raw weights and their EMA")
        return self.run

    @cached_property
    def manifest(self) -> Manifest | None:
        """The content of cascade.json; None for shards, for a run without an export, and for a given cascade."""
        if self.kind == "shards" or self._given is not None:
            return None
        if self.kind == "run" and not (self.path / "export" / "cascade.json").is_file():
            return None
        return read_manifest(resolve_folder(self.name))

    @cached_property
    def stages(self) -> list[StageConfig]:
        """The configs of all stages; [] for shards."""
        if self._given is not None:
            return [stage.config for stage in self._given.stages]
        if self.experiment is not None:
            return [self.experiment.stage]
        return [record.config for record in self.manifest.stages] if self.manifest else []

    @cached_property
    def text(self) -> TextConfig | None:
        """The text encoder of the run or the cascade; None without one."""
        if self._given is not None:
            return self._given.text
        if self.experiment is not None:
            return self.experiment.text
        return self.manifest.text.config if self.manifest and self.manifest.text else None

    @cached_property
    def cascade(self) -> Cascade:
        """The cascade, with the run's EMA. Raises Skip for shards and for a run without weights."""
        if self.kind == "shards":
            raise Skip("needs a network")
        if self._given is not None:
            found = self._given
        elif self.manifest is not None:
            found = Cascade.load(self.name)
        else:
            assert self.experiment is not None
            config = self.experiment.stage
            unet = build_unet(config.unet, self.training.weights("ema"), self.training.checkpoint)
            null_LD = None if self.text is None else torch.zeros(1, self.text.width)
            found = Cascade([Stage(config, unet)], text=self.text, unconditional=null_LD)
        if self.encoder is not None and found.texts is not None:
            found.texts.encoder = self.encoder
        return found

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return the weights of a stage in the number format in which they are stored."""
        if self.manifest is None:
            return self.cascade.stages[index].unet.state_dict()
        record = self.manifest.stages[index]
        return read_tensors(resolve_folder(self.name), record.weights, record.sha256)

    def encode(self, captions: list[str]) -> list[Tensor]:
        """Return embeddings [L_i, D] of captions. Raises Skip if the encoder cannot be loaded."""
        texts = self.cascade.texts
        if texts is None:
            raise Skip("there is no text encoder")
        try:
            known = texts(captions, self.device)
        except UserError as error:
            raise Skip(f"needs the text encoder ({error}), or its embeddings: give --data SHARDS") from None
        return [known[caption] for caption in captions]

    @cached_property
    def datasets(self) -> dict[str, ShardedDataset]:
        """The splits of the data by name. Raises Skip without data."""
        if self.data is None:
            raise Skip(NEEDS_DATA)
        return {name: open_split(self.data, name) for name in splits(self.data)}

    def batch(self, index: int, split: str | None = None) -> Batch:
        """Return images for a stage, with embeddings if it reads text: held-out ones if there are any.

        They have one shape: the square, or with aspect-ratio buckets that of most images. Raises Skip without data or
        without embeddings, and if no image fills a bucket.
        """
        stage, chosen = self.stages[index], split or self._validation_split
        if (index, chosen) not in self._batches:
            dataset = self.datasets[chosen]
            largest, _ = max(self._buckets(stage, dataset), key=lambda bucket: bucket[1], default=(None, 1.0))
            self._batches[index, chosen] = self._load(stage, dataset, largest)
        return self._batches[index, chosen]

    def batches(self, index: int, split: str | None = None) -> list[Batch]:
        """Return images as in training: with aspect-ratio buckets a batch for each bucket, else only `batch`.

        The sizes of the batches are proportional to the numbers of images in the buckets, and at least 2. Raises Skip
        as `batch` does.
        """
        stage, chosen = self.stages[index], split or self._validation_split
        if (index, chosen) not in self._shaped:
            dataset = self.datasets[chosen]
            shaped = [self._load(stage, dataset, bucket, share) for bucket, share in self._buckets(stage, dataset)]
            self._shaped[index, chosen] = shaped or [self.batch(index, split)]
        return self._shaped[index, chosen]

    def _buckets(self, stage: StageConfig, dataset: ShardedDataset) -> list[tuple[Assignment, float]]:
        """Return for each bucket with images the assignment of these alone, and their share; [] without buckets.

        The buckets are those of the run, or the sizes that a cascade's stage records. Squares are read where an index
        of an earlier version lacks the images' sizes.
        """
        config = DataConfig() if self.experiment is None else self.experiment.data
        sizes = stage.sizes if self.experiment is None else run_buckets(stage, config)
        if not sizes or not dataset.has_image_sizes:
            return []
        every = assign(sizes, dataset.image_sizes(), config.max_enlargement)
        used = int((every.bucket >= 0).sum())
        if not used:
            raise Skip(f"no image in {dataset.folder} fills one of the buckets")
        found = []
        for number in range(len(sizes)):
            if count := every.count(number):
                bucket_N = np.where(every.bucket == number, every.bucket, np.int16(Assignment.TOO_SMALL))
                found.append((replace(every, bucket=bucket_N), count / used))
        return found

    @property
    def _validation_split(self) -> str:
        return "heldout" if "heldout" in self.datasets else "train"

    def _load(
        self, stage: StageConfig, dataset: ShardedDataset, assignment: Assignment | None = None, share: float = 1.0
    ) -> Batch:
        """Load images of the shapes of `assignment` (None: squares); `share` of the usual number."""
        reads_text = stage.unet.text_width is not None
        embeddings = Embeddings(dataset, self.text) if reads_text and self.text and self._stored(dataset) else None
        config = self.experiment.data if self.experiment is not None else DataConfig()
        side = config.crop or stage.resolution
        count = max(4, min(IMAGES, PIXELS // side**2)) // (2 if self.quick else 1)
        loader = Loader(
            dataset,
            replace(config, workers=0, flip=False),
            resolution=stage.resolution,
            low_resolution=stage.low_resolution,
            embeddings=embeddings,
            channels=stage.unet.image_channels,
            assignment=assignment or leave_out_small(stage, config, dataset),
            batch_size=max(2, min(round(count * share), len(dataset))),
            seed=1,
        )
        (batch,) = islice(loader, 1)
        if reads_text and embeddings is None:
            text_BLD, mask_BL = pad_embeddings(self.encode(list(batch.captions)))
            batch = replace(batch, text=text_BLD, text_mask=mask_BL)
        return batch

    def _stored(self, dataset: ShardedDataset) -> bool:
        """Return whether there are embeddings of the right encoder. Raises Skip if captions cannot be encoded."""
        assert self.text is not None
        reason = "needs embeddings of cleaned or padded captions, which shards do not store"
        if self.text.cleaning == "none" and self.text.padding == "trim":
            try:
                Embeddings(dataset, self.text)
                return True
            except UserError as error:
                reason = f"needs embeddings: {error}"
        if self.encoder is None and self.text.encoder != EMBEDDED_ENCODER:
            raise Skip(reason)
        return False

    def prompts(self, index: int, count: int) -> tuple[list[str], list[Tensor]]:
        """Return captions of the data, or common prompts without data, and their embeddings [L_i, D].

        Raises Skip if there are no embeddings and the encoder cannot be loaded.
        """
        if self.data is None:
            captions = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
            return captions, self.encode(captions)
        batch = self.batch(index)
        first: dict[str, int] = {}
        for number, caption in enumerate(batch.captions):
            first.setdefault(caption, number)
        chosen = [*first.values(), *(i for i in range(len(batch)) if i not in first.values())][:count]
        return [batch.captions[i] for i in chosen], [self.text_of(index, i) for i in chosen]

    def text_of(self, index: int, row: int) -> Tensor:
        """Return the embedding [L, D] of an image in `batch`."""
        batch = self.batch(index)
        assert batch.text is not None and batch.text_mask is not None
        return batch.text[row][batch.text_mask[row]]

    def each(self, values: Sequence[T], what: str) -> Iterator[T]:
        """Yield `values`, and report progress before each."""
        for number, value in enumerate(values, 1):
            self.say(f"{what} {number}/{len(values)}")
            yield value


def _kind(path: str | Path) -> Kind:
    """Return what a path is. Raises UserError if it is nothing of what can be examined."""
    folder = Path(path)
    if (folder / "config.json").is_file():
        return "run"
    if as_url(path) is not None:
        return "shards"
    if folder.is_dir() and not (folder / "cascade.json").is_file():
        if any(folder.glob("*.tar")) or any((folder / name).is_dir() for name in ("train", "heldout")):
            return "shards"
        raise UserError(
            f"{path} is no training run (config.json), no cascade (cascade.json) and holds no shards (*.tar)"
        )
    if not folder.exists() and str(path) not in CASCADES and "/" not in str(path):
        raise UserError(f"{path} does not exist; expected a training run, a cascade or shards")
    resolve_folder(path)
    return "cascade"
