"""Time shared out between parties that come and go."""

from collections.abc import Collection, Mapping


class Shares:
    """Who had least is next (start-time fair queueing): each party gets time in proportion to its weight.

    One that joins begins where the least served of those present is: being away earns no credit.
    """

    def __init__(self, weights: Mapping[object, float] | None = None):
        self.weights = weights or {}
        self._spent: dict[object, float] = {}

    def join(self, name: object, present: Collection[object]) -> None:
        """present: the others that want time."""
        least = min((self.spent(other) for other in present if other != name), default=0.0)
        self._spent[name] = max(self.spent(name), least)

    def spend(self, name: object, seconds: float) -> None:
        self._spent[name] = self.spent(name) + seconds / self.weights.get(name, 1.0)

    def spent(self, name: object) -> float:
        return self._spent.get(name, 0.0)

    def keep(self, names: Collection[object]) -> None:
        """Forget all others."""
        self._spent = {name: spent for name, spent in self._spent.items() if name in names}
