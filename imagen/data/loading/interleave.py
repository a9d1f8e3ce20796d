"""Merge endless streams in fixed proportions, as a pure function of the seed.

Event k of a stream with share p happens at time (k + u) / p, with u in [0, 1) drawn for (stream, k). Events are ordered
by time. So after n events each stream has had n p of them, up to one per stream, in random order. No event is lost:
each stream advances one by one. Any index is found without the ones before it.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from imagen.data.loading.order import random_bits

_BLOCK = 256  # indices that are computed together
_BITS = 32  # of the random offset u


class Interleave:
    """Maps an index of the merged stream to (stream, index in that stream).

    shares: one per stream, at least one above 0; only their proportions matter. A share of 0 excludes a stream.
    purpose, part: separate independent interleavings of one seed.
    """

    def __init__(self, seed: int, shares: Sequence[Fraction | int], *, purpose: int, part: int = 0):
        self.seed, self.purpose, self.part = seed, purpose, part
        fractions = [Fraction(share) for share in shares]
        scale = math.lcm(*(share.denominator for share in fractions))
        self.weights = [int(share * scale) for share in fractions]
        self.active = [stream for stream, weight in enumerate(self.weights) if weight]
        if not self.active or min(self.weights) < 0:
            raise ValueError(f"shares are {list(map(str, shares))}; they must not be negative, nor all 0")
        # All times are integers, in units of 1 / (common multiple of the weights x 2^32).
        self._unit = math.lcm(*(self.weights[stream] for stream in self.active))
        self._block = lru_cache(8)(self._block_uncached)
        self._offsets = lru_cache(4 * len(self.active))(self._offsets_uncached)

    def __getitem__(self, index: int) -> tuple[int, int]:
        if len(self.active) == 1:
            return self.active[0], index
        block, offset = divmod(index, _BLOCK)
        return self._block(block)[offset]

    def _block_uncached(self, block: int) -> list[tuple[int, int]]:
        first, streams = block * _BLOCK, len(self.active)
        # A stream is at most one event ahead of its share or behind it, so a margin of one per stream suffices.
        begin, end = self._time(first - streams), self._time(first + _BLOCK + streams)
        before, events = 0, []
        for stream in self.active:
            k = max(0, begin // (self._interval(stream) << _BITS))
            while self._event(stream, k) < begin:  # at most once
                k += 1
            before += k
            while (time := self._event(stream, k)) < end:
                events.append((time, stream, k))
                k += 1
        events.sort()
        return [(stream, k) for _, stream, k in events[first - before : first - before + _BLOCK]]

    def _interval(self, stream: int) -> int:
        return self._unit // self.weights[stream]

    def _time(self, index: int) -> int:
        """Return the time by which about `index` events have happened."""
        return (index * self._unit << _BITS) // sum(self.weights)

    def _event(self, stream: int, k: int) -> int:
        block, offset = divmod(k, _BLOCK)
        return ((k << _BITS) + self._offsets(stream, block)[offset]) * self._interval(stream)

    def _offsets_uncached(self, stream: int, block: int) -> list[int]:
        bits = random_bits(self.seed, self.purpose, self.part << _BITS | stream, block, _BLOCK)
        return [int(word) >> (64 - _BITS) for word in bits]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.seed, self.weights, self.purpose, self.part)  # without the caches


def _rebuild(seed: int, weights: list[int], purpose: int, part: int) -> Interleave:
    return Interleave(seed, weights, purpose=purpose, part=part)
