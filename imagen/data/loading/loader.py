"""Deterministic batches from shards.

The stream is a function of (seed, global position): position p is sample `order[p % N]` of epoch `p // N`, and its
crop, its flip and the choice among its captions depend on (seed, p). Workers and ranks only divide the work: global
batch k consists of positions [k B, (k + 1) B), and rank r takes the r-th slice. One number therefore resumes a run
exactly, with any number of workers or ranks.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from imagen.data.loading.batches import Batch
from imagen.data.loading.buckets import Assignment
from imagen.data.loading.config import DataConfig
from imagen.data.loading.stream import SampleReader, Stream
from imagen.data.loading.stream_order import Source, StreamOrder
from imagen.data.shards.mixture import AnyDataset, AnyEmbeddings, MixedDataset
from imagen.errors import UserError

log = logging.getLogger(__name__)

_CAN_WAIT = hasattr(signal, "sigwaitinfo")  # not on macOS


class _Positions(Sampler[list[int]]):
    """An endless iterator over one rank's positions in each global batch."""

    def __init__(self, start: int, batch_size: int, rank: int, world_size: int):
        self.first = start + rank * (batch_size // world_size)
        self.step, self.count = batch_size, batch_size // world_size

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first
        while True:
            yield list(range(first, first + self.count))
            first += self.step


def _init_worker(_: int) -> None:
    """Make a worker ignore signals except the trainer's SIGTERM. (DataLoader has already set torch's threads to 1.)

    Ctrl-C and a scheduler's SIGTERM reach the whole process group, but a trainer that saves its state before it stops
    still needs batches. The trainer's own SIGTERM must end the worker; otherwise the trainer would hang at exit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()


def _exit_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def _blocked_sigterm() -> Iterator[None]:
    """Block SIGTERM in this thread, and in all threads of processes that are forked within.

    A worker's threads of torch start before `_init_worker`; one that does not block SIGTERM would end the worker.
    """
    if not _CAN_WAIT:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Loader:
    """An endless iterator over batches, starting at global position `position`.

    A bad sample is replaced by the one at the next position, logged by name and counted in `Batch.skipped`. If more
    than the share `config.max_bad` of the samples is bad, iteration raises UserError.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        config: DataConfig,
        *,
        resolution: int,
        low_resolution: int | None = None,
        embeddings: AnyEmbeddings | None = None,
        channels: int = 3,
        assignment: Assignment | None = None,
        group: int | None = None,
        batch_size: int,
        seed: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """Load from `dataset`, with text from `embeddings`. batch_size: global, over all ranks.

        assignment: of the samples to buckets; None: all are used, in the stage's square size.
        group: number of consecutive samples in one bucket (default: `batch_size`).

        Raises UserError for sizes that do not divide, and for a shard cache that is too small.
        """
        if config.window < 1 or config.workers < 0 or batch_size < 1:
            raise UserError(
                f"data.window {config.window}, data.workers {config.workers} and the batch size {batch_size} "
                "must be at least 1, 0 and 1"
            )
        if batch_size % world_size:
            raise UserError(f"a batch of {batch_size} does not divide among {world_size} ranks")
        group, share = group or batch_size, batch_size // world_size
        if assignment is not None and len(assignment.sizes) > 1 and (group % share or position % share):
            raise UserError(f"{group} samples of one bucket do not divide into batches of {share} per rank")
        dataset.check_cache(2 * config.window)  # while one window ends, the next begins
        self.dataset, self.config, self.position = dataset, config, position
        self._pin_memory = pin_memory
        reader = SampleReader(dataset, config, resolution, low_resolution, embeddings, channels)
        self.order = StreamOrder(seed, config.window, _sources(dataset), assignment, group)
        self.stream = Stream(reader, seed, self.order)
        self._positions = _Positions(position, batch_size, rank, world_size)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.stream,
            batch_sampler=self._positions,
            collate_fn=_identity,
            num_workers=self.config.workers,
            worker_init_fn=_init_worker,
            prefetch_factor=4 if self.config.workers else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else DataLoader draws from the global one and shifts the caller's numbers
        )
        seen = bad = 0
        with _blocked_sigterm():
            batches = iter(loader)  # starts the workers
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            seen, bad = seen + len(batch), bad + batch.skipped
            for problem in batch.problems:
                log.warning("replaced a bad sample: %s", problem)
            if bad > 10 + self.config.max_bad * seen:  # 10: a few bad images at the start do not stop the run
                raise UserError(
                    f"{bad} of {seen} samples are bad (data.max_bad is {self.config.max_bad}), "
                    f"the last one {batch.problems[-1]}; clean the data, or raise the limit with --data.max_bad"
                )
            yield batch


def _sources(dataset: AnyDataset) -> list[Source]:
    if isinstance(dataset, MixedDataset):
        return [Source(part.sizes, share) for part, share in zip(dataset.parts, dataset.shares, strict=True)]
    return [Source(dataset.sizes, Fraction(1))]


def _identity(batch: Any) -> Any:
    return batch
