"""Fair queueing of device time between clients, or between stages."""

from collections.abc import Collection, Mapping


class FairQueue:
    """Share time in proportion to weights (start-time fair queueing): the party with the least usage is next.

    Usage is in seconds divided by the party's weight. A party that becomes active starts at the lowest usage of the
    active ones, so it earns no credit while it is inactive.
    """

    def __init__(self, weights: Mapping[object, float] | None = None):
        """Create an empty queue. weights: of parties whose weight is not 1."""
        self.weights = weights or {}
        self._usage: dict[object, float] = {}
        self._active: set[object] = set()

    def set_active(self, names: Collection[object]) -> None:
        """Set the parties that need time now."""
        remaining = self._active.intersection(names)
        least = min(map(self.usage, remaining), default=0.0)
        for name in set(names) - remaining:
            self._usage[name] = max(self.usage(name), least)
        self._active = set(names)

    def charge(self, name: object, seconds: float) -> None:
        """Add device time to a party's usage."""
        self._usage[name] = self.usage(name) + seconds / self.weights.get(name, 1.0)

    def usage(self, name: object) -> float:
        """Return a party's weighted seconds; 0 for an unknown one."""
        return self._usage.get(name, 0.0)

    def retain(self, names: Collection[object]) -> None:
        """Forget all parties except `names`."""
        self._usage = {name: usage for name, usage in self._usage.items() if name in names}
        self._active &= set(names)
