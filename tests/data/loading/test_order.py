"""Test the order of samples in an epoch."""

import pickle

import numpy as np
from samples import epoch_order

from imagen.data.loading.order import Order

SIZES = np.array([5, 1, 9, 4, 7, 3, 8])


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [epoch_order(seed, epoch, SIZES, 3) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(37))
    assert len({tuple(order) for order in orders}) == 6
    assert np.array_equal(orders[0], epoch_order(0, 0, SIZES, 3))


def test_the_order_never_changes():
    """The order is pinned, since another order would break the resumption of every run."""
    assert epoch_order(1, 2, np.array([3, 2, 4]), 2).tolist() == [8, 6, 1, 2, 5, 7, 0, 4, 3]


def test_samples_come_from_one_window_of_shards_at_a_time():
    shard_of = np.repeat(np.arange(7), SIZES)
    order = shard_of[epoch_order(0, 5, SIZES, 2)]
    first_seen = list(dict.fromkeys(order.tolist()))
    start = 0
    windows = []
    while start < 37:
        window = set(first_seen[2 * len(windows) : 2 * len(windows) + 2])
        size = int(sum(SIZES[s] for s in window))
        assert set(order[start : start + size].tolist()) == window
        windows.append(window)
        start += size
    assert len(windows) == 4


def test_shuffling_is_uniform():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(0, epoch, np.array([6]), 1)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_starting_anywhere_takes_constant_time():
    """With a billion samples, finding a position must not compute the order of the whole epoch."""
    order = Order(0, np.full(100_000, 10_000), 4)
    assert 0 <= order[123_456_789_012] < 1_000_000_000
    assert pickle.loads(pickle.dumps(order))[123_456_789_012] == order[123_456_789_012]
