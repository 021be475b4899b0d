"""The last changes of what the node holds, for those who tell routers: each reads at its own pace.

Nothing is noted until somebody begins to read.
"""

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from sidecar.cache.keys import SpaceKey
from sidecar.flow import Signal

_MOST_HASHES = 1 << 17  # some 30 MB where each is a change of its own


class Medium(StrEnum):
    """Where an object is, by vLLM's names: in the L1, or in a tier below."""

    CPU = "CPU"
    STORAGE = "STORAGE"


class Change(Struct, frozen=True, gc=False):
    """The objects `hashes` of `space` can be loaded from `medium` from now on, or not any more.

    There are many, and they live long: the garbage collector sees neither them nor their hashes.
    """

    stored: bool
    medium: Medium
    space: SpaceKey
    hashes: tuple[bytes, ...]


class Page(NamedTuple):
    """Some changes in their order, and where to read on. `lost`: some are missing before them."""

    changes: list[Change]
    cursor: int
    lost: bool


class Changes:
    """The last changes, of `most` objects together. Loop thread only."""

    def __init__(self, most: int = _MOST_HASHES) -> None:
        self.on = False
        self._most = most
        self._log: deque[Change] = deque()
        self._hashes = 0
        self._next = 0
        self.news = Signal()  # there is one more

    def begin(self) -> int:
        """A cursor that reads what happens from now on."""
        self.on = True
        return self._next

    def stored(self, medium: Medium, space: SpaceKey, hashes: Sequence[bytes]) -> None:
        self._append(Change(True, medium, space, tuple(hashes)))

    def removed(self, medium: Medium, space: SpaceKey, hashes: Sequence[bytes]) -> None:
        self._append(Change(False, medium, space, tuple(hashes)))

    def since(self, cursor: int, most: int) -> Page:
        """At most `most` changes from `cursor` on."""
        first = self._next - len(self._log)
        start = min(max(cursor, first), self._next)
        changes = list(islice(self._log, start - first, start - first + most))
        return Page(changes, start + len(changes), cursor != start)

    def _append(self, change: Change) -> None:
        if self.on and change.hashes:
            self._log.append(change)
            self._next += 1
            self._hashes += len(change.hashes)
            # The latest stays: somebody is about to read it.
            while self._hashes > self._most and len(self._log) > 1:
                self._hashes -= len(self._log.popleft().hashes)
            self.news.fire()
