"""The events of the node in their order, made of changes, as those who subscribe are told them."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sidecar.cache.changes import Medium
from sidecar.cache.leases import Scope
from sidecar.flow import Signal, first
from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.chunks import Chunk, Place
from sidecar.handlers.kv_events.coverage import Coverage

_CHANGES_A_TURN = 64
_HASHES_A_TURN = 512
# Events that belong together, a sequence's and those of all ranks, are told together.
_GATHER_SECONDS = 0.01


class Event(NamedTuple):
    """One chunk that can be loaded from `medium` now, or some that cannot any more (`chunk` None).

    `hashes` are chunk hashes: the same tokens have the same for all models.
    """

    seq: int
    model_name: str
    medium: Medium
    hashes: Sequence[bytes]
    chunk: Chunk | None


class Page(NamedTuple):
    """Some events in their order, and the number of the last that was looked at.

    `lost`: some before them are not known any more.
    """

    events: list[Event]
    cursor: int
    lost: bool


class _Work(NamedTuple):
    """Objects that have come or gone, or of which nothing is told though they may be there."""

    stored: bool
    scope: Scope
    medium: Medium
    hashes: Sequence[bytes]


class History:
    """The last `size` events; none if `size` is 0. Loop thread only.

    What is told is what is true when it is told, once: what came and went meanwhile is not told at
    all. Of a chunk whose tokens are forgotten readers are told that it is gone.
    """

    def __init__(self, core: Core, size: int) -> None:
        # Events are numbered from here on, so that no number is one of an earlier server's.
        self.incarnation = time.time_ns()
        self.unknown = 0  # objects that were stored, and of whose tokens nothing is known
        self.losses = 0  # times that changes came faster than they could be told
        self._core = core
        self._events: deque[Event] = deque(maxlen=size)
        self._next = self.incarnation
        self._begun = False
        self.news = Signal()  # there are more events

    @property
    def size(self) -> int:
        return self._events.maxlen or 0

    @property
    def last(self) -> int:
        """The number of the latest event."""
        return self._next - 1

    def __len__(self) -> int:
        return len(self._events)

    def begin(self) -> None:
        """Somebody wants to know. Idempotent: it goes on for as long as the server runs."""
        if not self._begun:
            self._begun = True
            self._core.chunks.on = True
            self._core.flows.start(self._follow(self._core.l1.changes.begin()))

    def since(self, cursor: int, most: int) -> Page:
        """At most `most` events behind number `cursor`."""
        start = self._next - len(self._events)
        lost = not start - 1 <= cursor <= self.last
        at = max(start, cursor + 1) if not lost else start
        events = list(islice(self._events, at - start, at - start + most))
        return Page(events, events[-1].seq if events else self.last, lost)

    async def _follow(self, cursor: int) -> None:
        core = self._core
        while True:
            page, known = core.l1.changes.since(cursor, _CHANGES_A_TURN), self.last
            cursor = page.cursor
            work = [_Work(c.stored, Scope.of(c.space), c.medium, c.hashes) for c in page.changes]
            if (fresh := core.chunks.take_fresh()) is not None:
                work += [_Work(True, fresh[0], medium, fresh[1]) for medium in Medium]
            await self._tell(work)
            if page.lost:
                await self._tell_again()
            self._take_back_forgotten()
            if self.last != known:
                self.news.fire()
            if work:
                await core.flows.sleep(0)
            else:
                await first(core.l1.changes.news.next(), core.chunks.news.next())
                await core.flows.sleep(_GATHER_SECONDS)

    async def _tell(self, work: Sequence[_Work]) -> None:
        """In turns: a clear of a million objects is one change, and a prompt may be as long."""
        coverage, left = self._coverage(), _HASHES_A_TURN
        for stored, scope, medium, hashes in work:
            tell = self._tell_stored if stored else self._tell_removed
            for names in _turns(hashes):
                if left <= 0:
                    await self._core.flows.sleep(0)
                    coverage, left = self._coverage(), _HASHES_A_TURN
                tell(coverage, scope, medium, names)
                left -= len(names)

    async def _tell_again(self) -> None:
        """There were more changes than are kept: what readers know is compared with what is."""
        self.losses += 1
        for names in _turns(self._core.chunks.names()):
            coverage, scopes = self._coverage(), defaultdict[Place, list[Scope]](list)
            for scope, medium in coverage.scopes():
                self._tell_stored(coverage, scope, medium, names)
                scopes[scope.model_name, medium].append(scope)
            for name in names:
                chunk = self._core.chunks.get(name)
                for place in chunk.told if chunk is not None else ():
                    if not any(coverage.has(scope, place[1], name) for scope in scopes[place]):
                        self._take_back(place, [name])
            await self._core.flows.sleep(0)

    def _tell_stored(
        self, coverage: Coverage, scope: Scope, medium: Medium, names: Sequence[bytes]
    ) -> None:
        self._take_back_forgotten()  # before the same chunk is told anew
        place = scope.model_name, medium
        for name in names:
            chunk = self._core.chunks.get(name)
            if chunk is None:
                self.unknown += 1
            elif place not in chunk.told and coverage.has(scope, medium, name):
                chunk.told += (place,)
                self._append(place, [name], chunk)

    def _tell_removed(
        self, coverage: Coverage, scope: Scope, medium: Medium, names: Sequence[bytes]
    ) -> None:
        gone = [name for name in names if not coverage.has(scope, medium, name)]
        self._take_back((scope.model_name, medium), gone)

    def _take_back(self, place: Place, names: Sequence[bytes]) -> None:
        """What readers were told of these, if they were."""
        told = []
        for name in names:
            chunk = self._core.chunks.get(name)
            if chunk is not None and place in chunk.told:
                chunk.told = tuple(each for each in chunk.told if each != place)
                told.append(name)
        if told:
            self._append(place, told, None)

    def _take_back_forgotten(self) -> None:
        for name, chunk in self._core.chunks.take_forgotten():
            for place in chunk.told:
                self._append(place, [name], None)

    def _coverage(self) -> Coverage:
        return Coverage(self._core.l1, self._core.tiers.backends)

    def _append(self, place: Place, hashes: Sequence[bytes], chunk: Chunk | None) -> None:
        self._events.append(Event(self._next, *place, hashes, chunk))
        self._next += 1


def _turns(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(names), _HASHES_A_TURN):
        yield names[at : at + _HASHES_A_TURN]
