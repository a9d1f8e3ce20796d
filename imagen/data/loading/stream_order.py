"""Which sample, of which size, is at a position of the stream: with buckets, and with several sources.

Positions form groups of consecutive ones. All samples of a group have the same bucket, and so one shape. An
`Interleave` chooses the bucket of each group, by the bucket's share of the samples; a second one chooses the source of
each sample, by the sources' weights. Within a bucket of a source, `Order` shuffles each epoch. Nothing is dropped or
repeated where a bucket does not divide into groups: its next epoch continues in the same group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import numpy as np

from imagen.data.loading.buckets import Assignment, Size, show_size
from imagen.data.loading.interleave import Interleave
from imagen.data.loading.order import Order
from imagen.errors import UserError

# Streams of random bits: 0 is for the order, 1 for crop and flip, 2 for captions.
_BUCKETS, _SOURCES = 3, 4


@dataclass(frozen=True)
class Source:
    """The part of a data set that comes from one source."""

    shard_sizes: np.ndarray  # samples per shard
    weight: Fraction  # share of the source in training


class _Pool:
    """The samples of one source and one bucket, in the order of an endless stream."""

    def __init__(self, seed: int, window: int, shard_sizes: np.ndarray, first: int, chosen: np.ndarray | None):
        """first: number of the source's first sample. chosen: bool [samples of the source]; None: all."""
        self.first, self.samples = first, None
        if chosen is not None:
            self.samples = np.flatnonzero(chosen).astype(np.uint32)
            # The same seed for all buckets: their epochs then pass through the same shards at the same time.
            padded = np.append(chosen, False).astype(np.int64)  # an empty last shard starts behind the end
            shard_sizes = np.add.reduceat(padded, _starts(shard_sizes)) * (shard_sizes > 0)
        self.order = Order(seed, shard_sizes, window)

    def __len__(self) -> int:
        return self.order.length

    def __getitem__(self, index: int) -> int:
        i = self.order[index]
        return self.first + (i if self.samples is None else int(self.samples[i]))


class StreamOrder:
    """Maps positions to samples, as a pure function of the seed.

    sources: the parts of the data set, in order. assignment: of all samples to buckets; None: all images have one size.
    group: number of consecutive samples with one bucket.
    Raises UserError if a source has no sample in any bucket.
    """

    def __init__(
        self, seed: int, window: int, sources: Sequence[Source], assignment: Assignment | None = None, group: int = 1
    ):
        self.sizes = None if assignment is None else assignment.sizes
        self.group = 1 if assignment is None else group
        ends = np.cumsum([source.shard_sizes.sum() for source in sources]).tolist()
        buckets: Sequence[int | None] = [None] if self.sizes is None else range(len(self.sizes))
        self._pools: list[list[_Pool]] = []
        for bucket in buckets:
            row = []
            for source, end in zip(sources, ends, strict=True):
                first = end - int(source.shard_sizes.sum())
                chosen = None if assignment is None else assignment.bucket[first:end] == bucket
                row.append(_Pool(seed, window, source.shard_sizes, first, chosen))
            self._pools.append(row)
        usable = [sum(len(row[s]) for row in self._pools) for s in range(len(sources))]
        for number, samples in enumerate(usable):
            if samples == 0:
                which = "" if len(sources) == 1 else f" of source {number + 1}"
                if self.sizes is None:
                    raise UserError(f"the data set{which} has no samples")
                needed = "a bucket" if len(self.sizes) > 1 else show_size(self.sizes[0])
                raise UserError(
                    f"no image{which} is large enough for {needed}; train at a smaller size, or raise "
                    "data.max_enlargement"
                )
        shares = [
            [s.weight * len(pool) / n for pool, s, n in zip(row, sources, usable, strict=True)] for row in self._pools
        ]
        self._buckets = Interleave(seed, [sum(row) for row in shares], purpose=_BUCKETS)
        self._sources = {
            bucket: Interleave(seed, shares[bucket], purpose=_SOURCES, part=bucket) for bucket in self._buckets.active
        }

    def size(self, position: int) -> Size | None:
        """Return the bucket's size at a position; None without buckets."""
        return None if self.sizes is None else self.sizes[self._buckets[position // self.group][0]]

    def candidates(self, position: int) -> Iterator[int]:
        """Yield the sample at a position, then those that replace it if it is bad: the next ones of its bucket."""
        number, offset = divmod(position, self.group)
        bucket, group = self._buckets[number]
        for index in count(group * self.group + offset):
            source, i = self._sources[bucket][index]
            yield self._pools[bucket][source][i]


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes
