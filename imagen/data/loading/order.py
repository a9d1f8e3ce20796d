"""Map global positions to samples, as a pure function of (seed, epoch)."""

from functools import lru_cache
from typing import Any

import numpy as np


def random_bits(seed: int, stream: int, index: int, part: int, count: int) -> np.ndarray:
    """Return `count` random uint64, a pure function of the arguments; `stream` and `part` separate purposes.

    Raw output of a counter-based generator: numpy promises it for all versions, unlike `permutation`.
    """
    mask = 2**64 - 1
    return np.random.Philox(key=[seed & mask, index], counter=[0, 0, part, stream]).random_raw(count)


def _permutation(seed: int, epoch: int, part: int, count: int) -> np.ndarray:
    return np.argsort(random_bits(seed, 0, epoch, part, count), kind="stable")


class Order:
    """The order of samples: shards are shuffled, then samples within each window of `window` shards.

    Only a few files are therefore read at a time. Only the windows in use are computed, so starting anywhere in an
    epoch of any length costs the same.
    """

    def __init__(self, seed: int, shard_sizes: np.ndarray, window: int):
        self.seed, self.window = seed, window
        self.sizes = np.asarray(shard_sizes, np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.length = int(self.sizes.sum())
        self._epoch = lru_cache(2)(self._epoch_uncached)
        self._window = lru_cache(4)(self._window_uncached)

    def _epoch_uncached(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's shards in order, and the position in the epoch at which each window ends."""
        shards = _permutation(self.seed, epoch, 0, len(self.sizes))
        sizes = np.add.reduceat(self.sizes[shards], np.arange(0, len(shards), self.window))
        return shards, np.cumsum(sizes)

    def _window_uncached(self, epoch: int, window: int) -> np.ndarray:
        shards = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        samples = np.concatenate([np.arange(self.starts[s], self.starts[s] + self.sizes[s]) for s in shards])
        return samples[_permutation(self.seed, epoch, 1 + window, len(samples))]

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        ends = self._epoch(epoch)[1]
        window = int(np.searchsorted(ends, offset, side="right"))
        return int(self._window(epoch, window)[offset - ends[window]])  # a negative index, from the window's end

    def __reduce__(self) -> tuple[Any, ...]:
        return Order, (self.seed, self.sizes, self.window)  # without the caches
