"""Deterministic batches from shards.

Everything about the stream follows from (seed, global position): position p is sample
`order[p % N]` of epoch `p // N`, and its crop and flip come from (seed, p). Workers and ranks
only divide the work: global batch k is positions [k B, (k + 1) B), of which rank r takes the
r-th slice. So one number resumes a run exactly, on any number of workers or ranks.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from imagen.data.embeddings import Embeddings, TextLike, pad
from imagen.data.order import Order, random_bits
from imagen.data.remote import Cache, default_folder
from imagen.data.shards import BadSample, ShardedDataset, open_split
from imagen.data.transforms import aligned_crop, choose_image, decode, fit, names_a_side
from imagen.errors import UserError, check_number

log = logging.getLogger(__name__)

_TRIES = 100  # bad samples in a row before the stream gives up


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    crop: int | None = None  # side of a random high-resolution crop (SR training); None: the whole picture
    flip: bool = False  # random horizontal flip of pictures whose caption names neither left nor right
    full_decode: bool = False  # decode JPEGs at their full size, several times slower: nearer to Pillow's bicubic
    on_the_fly: bool = False  # encode captions while training, instead of reading their embeddings beside the shards
    workers: int = 2  # loader processes a rank; 0: load in the training process
    window: int = 4  # shards that are shuffled together
    max_enlargement: float = 1.0  # a picture that would have to be enlarged by more is a bad sample
    max_bad: float = 0.1  # bad samples tolerated, as a fraction of those seen
    cache: str | None = None  # folder for copies of shards that are read from a URL; None: ~/.cache/imagen/shards
    cache_gb: float = 50.0  # its bound for tars, in 10^9 bytes

    @property
    def shard_cache(self) -> Cache:
        folder = default_folder() if self.cache is None else Path(self.cache).expanduser()
        return Cache(folder=folder, gb=self.cache_gb)

    def check(self) -> None:
        """UserError, naming the field, unless every value is in its range."""
        if self.crop is not None:
            check_number("data.crop", self.crop, least=1)
        check_number("data.workers", self.workers, least=0)
        check_number("data.window", self.window, least=1)
        check_number("data.max_enlargement", self.max_enlargement, above=0)
        check_number("data.max_bad", self.max_bad, least=0, most=1)
        check_number("data.cache_gb", self.cache_gb, above=0)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch."""

    position: int  # global position of its first sample (-1: samples fetched by index)
    keys: list[str]
    captions: list[str]
    image: Tensor  # uint8 [B, 3, H, W]
    low_res: Tensor | None  # uint8 [B, 3, h, w], the same region
    text: Tensor | None  # float32 [B, L, D], zero-padded to the longest
    text_mask: Tensor | None  # bool [B, L], True: a token
    problems: tuple[str, ...] = ()  # bad samples that were replaced, and why

    @property
    def skipped(self) -> int:
        """How many bad samples were replaced."""
        return len(self.problems)

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def _map(self, function: Any) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)})


class _Pictures:
    """Samples by index as tensors of the sizes asked for."""

    def __init__(
        self,
        dataset: ShardedDataset,
        config: DataConfig,
        resolution: int,
        low_resolution: int | None,
        text: TextLike | None,
    ):
        self.dataset, self.config = dataset, config
        self.resolution, self.low_resolution = resolution, low_resolution
        self.embeddings = None if text is None else Embeddings(dataset, text)
        scale = 1
        if low_resolution is not None:
            scale, rest = divmod(resolution, low_resolution)
            if rest or scale < 1:
                raise UserError(f"resolution {resolution} is not a multiple of low_resolution {low_resolution}")
        if config.crop is not None and (config.crop % scale or not 0 < config.crop <= resolution):
            raise UserError(f"data.crop {config.crop} must be a multiple of {scale} and at most {resolution}")

    def pair(self, i: int) -> tuple[Tensor, Tensor | None]:
        """The high- and low-resolution picture of sample `i`, whole; BadSample if it cannot be used."""
        extensions = self.dataset.extensions(i)
        high = self._picture(i, choose_image(extensions, self.resolution), self.resolution)
        if self.low_resolution is None:
            return high, None
        master = f"{self.low_resolution}.png"  # exact, e.g. drawn at that size: better than a reduction
        if master in extensions:
            return high, self._picture(i, master, self.low_resolution)
        return high, self.resize(high, self.low_resolution)

    def _picture(self, i: int, extension: str, side: int) -> Tensor:
        return self.resize(self.decode(self.read(i, extension), side), side)

    # The steps of a picture, each of which `imagen.data.bench` times.

    def read(self, i: int, extension: str) -> bytes:
        return self.dataset.read(i, extension)

    def decode(self, data: bytes, side: int) -> Tensor:
        # Twice the side: most of the speed of DCT scaling, and the antialiased resize still has the last word.
        return decode(data, min_side=0 if self.config.full_decode else 2 * side)

    def resize(self, image_CHW: Tensor, side: int) -> Tensor:
        return fit(image_CHW, side, self.config.max_enlargement)

    def stack(self, images: list[Tensor]) -> Tensor:
        # In a worker this fills shared memory at once; of a plain stack it would make a second copy.
        return default_collate(images).contiguous()

    def batch(self, position: int, indices: list[int], pairs: list[Any], problems: list[str]) -> Batch:
        captions = [self.dataset.caption(i) for i in indices]
        text = mask = None
        if self.embeddings is not None:
            text, mask = pad([self.embeddings.tokens(i, c) for i, c in zip(indices, captions, strict=True)])
        return Batch(
            position=position,
            keys=[self.dataset.key(i) for i in indices],
            captions=captions,
            image=self.stack([high for high, _ in pairs]),
            low_res=None if self.low_resolution is None else self.stack([low for _, low in pairs]),
            text=text,
            text_mask=mask,
            problems=tuple(problems),
        )


class _Stream(Dataset):
    """Lists of positions -> Batch. A UserError is returned, not raised: torch would wrap it in a worker's traceback."""

    def __init__(self, pictures: _Pictures, seed: int):
        self.pictures, self.seed = pictures, seed
        self.order = Order(seed, pictures.dataset.sizes, pictures.config.window)

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        try:
            problems: list[str] = []
            loaded = [self._load(position, problems) for position in positions]
            return self.pictures.batch(positions[0], [i for i, _ in loaded], [pair for _, pair in loaded], problems)
        except UserError as error:
            return error

    def _load(self, position: int, problems: list[str]) -> tuple[int, tuple[Tensor, Tensor | None]]:
        """The sample at `position`, or in place of a bad one that of the next position: a pure function too."""
        dataset, config = self.pictures.dataset, self.pictures.config
        for attempt in range(_TRIES):
            i = self.order[position + attempt]
            try:
                high, low = self.pictures.pair(i)
            except BadSample as error:
                problems.append(f"{dataset.key(i)} in {dataset.tar_path(dataset.locate(i)[0])}: {error}")
                continue
            flip, top, left = (random_bits(self.seed, 1, position, 0, 3) >> np.uint64(11)) / 2**53  # in [0, 1)
            if config.crop is not None:
                high, low = aligned_crop(high, low, config.crop, (top, left))
            if config.flip and flip < 0.5 and not names_a_side(dataset.caption(i)):
                high, low = high.flip(-1), None if low is None else low.flip(-1)
            return i, (high, low)
        raise UserError(f"{_TRIES} bad samples in a row, the last one {problems[-1]}; check the data")


class _Positions(Sampler[list[int]]):
    """One rank's positions of each global batch, forever."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int):
        self.first = start + rank * (batch_size // world_size)
        self.step, self.count = batch_size, batch_size // world_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first
        while True:
            yield list(range(first, first + self.count))
            first += self.step


def _init_worker(_: int) -> None:
    """Make a worker obey its trainer alone. (DataLoader has set torch's threads to 1 already.)

    Ctrl-C and a scheduler's SIGTERM reach the whole process group, but a trainer that saves its state
    before it stops still needs batches. The trainer's own SIGTERM must end the worker, or exit would hang.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class Loader:
    """Iterates batches forever, starting at global position `position`.

    `batch_size` is global, over all ranks. `text` (a TextConfig) asks for embeddings from the sidecars;
    None needs none. A bad sample is replaced by the one at the next position, logged by name and counted
    in `Batch.skipped`; above `config.max_bad` of the samples seen it is a UserError. Raises UserError for
    missing or mismatching shards and sidecars and for sizes that do not divide.
    """

    def __init__(
        self,
        folder: str | Path,
        config: DataConfig,
        *,
        resolution: int,
        low_resolution: int | None = None,
        text: TextLike | None = None,
        batch_size: int,
        seed: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        pin_memory: bool = False,
    ):
        if config.window < 1 or config.workers < 0 or batch_size < 1:
            raise UserError(
                f"data.window {config.window}, data.workers {config.workers} and the batch size {batch_size} "
                "must be at least 1, 0 and 1"
            )
        if batch_size % world_size:
            raise UserError(f"a batch of {batch_size} does not divide among {world_size} ranks")
        self.dataset = open_split(folder, split, config.shard_cache)
        self.dataset.check_cache(2 * config.window)  # while one window ends, the next begins
        self.config, self.position = config, position
        self._pin_memory = pin_memory
        self._pictures = _Pictures(self.dataset, config, resolution, low_resolution, text)
        self._stream = _Stream(self._pictures, seed)
        self._positions = _Positions(position, batch_size, rank, world_size)

    @property
    def unconditional(self) -> Tensor | None:
        """What the unconditional model sees in place of a caption's embedding, [L0, D]; None without text."""
        return None if self._pictures.embeddings is None else self._pictures.embeddings.unconditional()

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self._stream,
            batch_sampler=self._positions,
            collate_fn=_identity,
            num_workers=self.config.workers,
            worker_init_fn=_init_worker,
            prefetch_factor=4 if self.config.workers else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else DataLoader draws from the global one and shifts the caller's numbers
        )
        seen = bad = 0
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            seen, bad = seen + len(batch), bad + batch.skipped
            for problem in batch.problems:
                log.warning("replaced a bad sample: %s", problem)
            if bad > 10 + self.config.max_bad * seen:  # 10: one bad picture at the start is no reason to stop
                raise UserError(
                    f"{bad} of {seen} samples are bad (data.max_bad is {self.config.max_bad}), "
                    f"the last one {batch.problems[-1]}; clean the data or raise the limit"
                )
            yield batch


def _identity(batch: Any) -> Any:
    return batch


def dataset_batch(
    folder: str | Path,
    indices: list[int],
    *,
    resolution: int,
    low_resolution: int | None = None,
    text: TextLike | None = None,
    split: str = "train",
) -> Batch:
    """The given samples as one Batch, uncropped and unflipped: for validation. A bad sample is a UserError."""
    dataset = open_split(folder, split)
    pictures = _Pictures(dataset, DataConfig(), resolution, low_resolution, text)
    pairs = []
    for i in indices:
        try:
            pairs.append(pictures.pair(i))
        except BadSample as error:
            raise UserError(f"{dataset.key(i)} in {dataset.tar_path(dataset.locate(i)[0])}: {error}") from None
    return pictures.batch(-1, list(indices), pairs, [])
