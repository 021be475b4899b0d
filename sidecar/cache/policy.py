"""Which object goes when room is needed.

A policy sees only evictable objects: complete, and neither leased nor pinned.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from typing import Protocol

from sidecar.cache.entry import Entry


class EvictionPolicy(Protocol):
    """Four methods, so that another policy is one more class and one more line below."""

    def add(self, entry: Entry) -> None:
        """`entry` became evictable; it was used just now."""

    def remove(self, entry: Entry) -> None:
        """`entry` is gone or no longer evictable."""

    def clear(self) -> None:
        """All that was evictable is gone."""

    def candidates(self) -> Iterable[Entry]:
        """What may be evicted, the least valuable first."""


class LRU:
    """Least recently used first; before those what is `cold`, the longest unused first."""

    def __init__(self) -> None:
        self._cold: OrderedDict[Entry, None] = OrderedDict()
        self._entries: OrderedDict[Entry, None] = OrderedDict()

    def add(self, entry: Entry) -> None:
        (self._cold if entry.cold else self._entries)[entry] = None

    def remove(self, entry: Entry) -> None:
        del (self._cold if entry.cold else self._entries)[entry]

    def clear(self) -> None:
        self._cold.clear()
        self._entries.clear()

    def candidates(self) -> Iterable[Entry]:
        return chain(self._cold, self._entries)


class NoEviction:
    """Nothing ever goes; a full cache stores no more."""

    def add(self, entry: Entry) -> None:
        pass

    def remove(self, entry: Entry) -> None:
        pass

    def clear(self) -> None:
        pass

    def candidates(self) -> Iterable[Entry]:
        return ()


POLICIES: dict[str, type[LRU] | type[NoEviction]] = {"LRU": LRU, "noop": NoEviction}
