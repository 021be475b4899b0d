"""Least recently used."""

from collections.abc import Iterable
from itertools import count

from sidecar.cache.entry import Entry, Heat
from sidecar.cache.order import Order
from sidecar.cache.policy import ABOVE_COLD


class LRU(Order):
    """Least recently used first; before those what is cold, the longest unused first."""

    def __init__(self) -> None:
        super().__init__()
        self._uses = count()

    def next_place(self, entry: Entry) -> int:
        return next(self._uses) if entry.heat is Heat.COLD else next(self._uses) | ABOVE_COLD

    def evicted(self, entry: Entry) -> None:
        pass

    def recalls(self, entry: Entry) -> bool:
        return False

    def candidates(self) -> Iterable[Entry]:
        return self
