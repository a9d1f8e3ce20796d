"""Time shared out between parties that come and go."""

from collections.abc import Collection, Mapping


class Shares:
    """Who had least is next (start-time fair queueing): each party gets time in proportion to its weight.

    One that joins begins where the least served of those present is: being away earns no credit.
    """

    def __init__(self, weights: Mapping[object, float] | None = None):
        self.weights = weights or {}
        self._spent: dict[object, float] = {}
        self._present: set[object] = set()

    def want(self, names: Collection[object]) -> None:
        """These want time now; those of them that did not before, join."""
        stay = self._present.intersection(names)
        least = min(map(self.spent, stay), default=0.0)
        for name in set(names) - stay:
            self._spent[name] = max(self.spent(name), least)
        self._present = set(names)

    def spend(self, name: object, seconds: float) -> None:
        self._spent[name] = self.spent(name) + seconds / self.weights.get(name, 1.0)

    def spent(self, name: object) -> float:
        return self._spent.get(name, 0.0)

    def keep(self, names: Collection[object]) -> None:
        """Forget all others."""
        self._spent = {name: spent for name, spent in self._spent.items() if name in names}
        self._present &= set(names)
