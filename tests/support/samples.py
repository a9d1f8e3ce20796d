"""Read whole samples of a data set and whole epochs of an order."""

import itertools
from dataclasses import dataclass

import numpy as np

from imagen.data.loading.order import Order


@dataclass(frozen=True)
class Sample:
    """All members of one sample."""

    key: str
    captions: list[str]  # "" if the sample has no caption
    members: dict[str, bytes]  # by extension, such as {"64.png": ..., "txt": ...}

    @property
    def caption(self):
        return self.captions[0]


def read_sample(dataset, i):
    """Read every member of sample `i` of a ShardedDataset."""
    return Sample(dataset.key(i), dataset.captions(i), {name: dataset.read(i, name) for name in dataset.extensions(i)})


def epoch_order(seed, epoch, shard_sizes, window):
    """Return the samples of one epoch in order, int64 [N]."""
    order = Order(seed, shard_sizes, window)
    return np.array([order[epoch * order.length + i] for i in range(order.length)], np.int64)


def take(loader, count):
    """Return the first `count` batches."""
    return list(itertools.islice(loader, count))
