"""Deterministic batches from shards.

Everything about the stream follows from (seed, global position): position p is sample
`order[p % N]` of epoch `p // N`, and its crop, its flip and, of several captions, the one it is
shown with come from (seed, p). Workers and ranks only divide the work: global batch k is positions
[k B, (k + 1) B), of which rank r takes the r-th slice. So one number resumes a run exactly, on any
number of workers or ranks.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imagen.data.loading.batches import Batch, Pictures
from imagen.data.loading.config import DataConfig
from imagen.data.loading.order import Order, random_bits
from imagen.data.loading.transforms import aligned_crop, names_a_side
from imagen.data.shards.captions import drawn
from imagen.data.shards.dataset import BadSample, open_split
from imagen.errors import UserError
from imagen.text.config import TextConfig

log = logging.getLogger(__name__)

_TRIES = 100  # bad samples in a row before the stream gives up


class Stream(Dataset):
    """Lists of positions -> Batch. A UserError is returned, not raised: torch would wrap it in a worker's traceback."""

    def __init__(self, pictures: Pictures, seed: int):
        self.pictures, self.seed = pictures, seed
        self.order = Order(seed, pictures.dataset.sizes, pictures.config.window)

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        try:
            problems: list[str] = []
            loaded = [self._load(position, problems) for position in positions]
            indices, chosen, pairs = zip(*loaded, strict=True)
            return self.pictures.batch(positions[0], list(indices), list(chosen), list(pairs), problems)
        except UserError as error:
            return error

    def _load(self, position: int, problems: list[str]) -> tuple[int, tuple[int, str], tuple[Tensor, Tensor | None]]:
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
            captions = dataset.captions(i)
            chosen = drawn(self.seed, position, len(captions))
            if config.flip and flip < 0.5 and not names_a_side(captions[chosen]):
                high, low = high.flip(-1), None if low is None else low.flip(-1)
            return i, (chosen, captions[chosen]), (high, low)
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
        text: TextConfig | None = None,
        channels: int = 3,
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
        self._pictures = Pictures(self.dataset, config, resolution, low_resolution, text, channels)
        self._stream = Stream(self._pictures, seed)
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
