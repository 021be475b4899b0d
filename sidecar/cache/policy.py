"""Which object goes when room is needed."""

from collections.abc import Iterable
from itertools import count
from typing import Protocol

from sidecar.cache.entry import Entry
from sidecar.cache.order import Order

_WARM = 1 << 50  # behind the place of whatever is cold


class EvictionPolicy(Protocol):
    """Five methods, so that another policy is one more class and one more line below.

    Candidates are complete, and neither leased nor pinned. A hold moves nothing: when it ends,
    an object is back at its `place`.
    """

    def next_place(self, entry: Entry) -> int:
        """Where `entry`, which is no candidate at the moment, belongs when it is used now."""

    def add(self, entry: Entry) -> None:
        """`entry` has become evictable."""

    def remove(self, entry: Entry) -> None:
        """`entry` is gone, or not evictable any more."""

    def clear(self) -> None:
        """All that was evictable is gone."""

    def candidates(self) -> Iterable[Entry]:
        """What may be evicted, the least valuable first."""


class LRU(Order):
    """Least recently used first; before those what is `cold`, the longest unused first."""

    def __init__(self) -> None:
        super().__init__()
        self._uses = count()

    def next_place(self, entry: Entry) -> int:
        return next(self._uses) if entry.cold else next(self._uses) | _WARM

    def candidates(self) -> Iterable[Entry]:
        return self


class NoEviction:
    """Nothing ever goes; a full cache stores no more."""

    def next_place(self, entry: Entry) -> int:
        return 0

    def add(self, entry: Entry) -> None:
        pass

    def remove(self, entry: Entry) -> None:
        pass

    def clear(self) -> None:
        pass

    def candidates(self) -> Iterable[Entry]:
        return ()


POLICIES: dict[str, type[LRU] | type[NoEviction]] = {"LRU": LRU, "noop": NoEviction}
