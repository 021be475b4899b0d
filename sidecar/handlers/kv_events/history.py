"""The events of the node in their order, made of changes, as those who subscribe are told them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sidecar.cache.changes import Change, Medium
from sidecar.cache.leases import Scope
from sidecar.flow import Outcome, first
from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.chunks import Chunk
from sidecar.handlers.kv_events.coverage import Coverage, scope_of_space

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


class History:
    """The last `size` events; none if `size` is 0. Loop thread only.

    What is told is what is true when it is told: what came and went meanwhile is not told at all.
    """

    def __init__(self, core: Core, size: int) -> None:
        self.incarnation = time.time_ns()
        self.unknown = 0  # chunks that were stored, and of whose tokens nothing is known
        self.losses = 0  # times that changes came faster than they could be told
        self._core = core
        self._events: deque[Event] = deque(maxlen=size)
        self._next = 1
        self._begun = False
        self._news: Outcome[None] = Outcome()

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

    def news(self) -> Outcome[None]:
        """An outcome that is set when there is more."""
        return self._news

    async def all_of(self, model_name: str) -> list[Event]:
        """All chunks of a model that the L1 holds and whose tokens are known, as events."""
        core, found, seq = self._core, list[Event](), self.last
        scopes = {scope_of_space(s.key) for s in core.l1.spaces() if s.key.model_name == model_name}
        for scope in scopes:
            for names in _turns(core.chunks.names()):
                coverage = self._coverage(scope)
                for name in names:
                    chunk = core.chunks.get(name)
                    if chunk is not None and coverage.has(Medium.CPU, name):
                        found.append(Event(seq, model_name, Medium.CPU, [name], chunk))
                await core.flows.sleep(0)
        return found

    async def _follow(self, cursor: int) -> None:
        core = self._core
        while True:
            page = core.l1.changes.since(cursor, _CHANGES_A_TURN)
            cursor, known = page.cursor, self.last
            if page.lost:
                self._lose()
            for change in page.changes:
                await self._tell(change)
            told = {(c.medium, name) for c in page.changes if c.stored for name in c.hashes}
            for scope, names in core.chunks.take_fresh():
                for medium in Medium:
                    fresh = [name for name in names if (medium, name) not in told]
                    await self._tell_stored(scope, medium, fresh)
            if self.last != known:
                news, self._news = self._news, Outcome()
                news.set(None)
            if not page.changes:
                await first(core.l1.changes.news(), core.chunks.news())
                await core.flows.sleep(_GATHER_SECONDS)

    async def _tell(self, change: Change) -> None:
        scope = scope_of_space(change.space)
        if change.stored:
            await self._tell_stored(scope, change.medium, change.hashes)
            return
        for names in _turns(change.hashes):
            coverage = self._coverage(scope)
            gone = [name for name in names if not coverage.has(change.medium, name)]
            if gone:
                self._append(scope, change.medium, gone, None)
            if len(change.hashes) > _HASHES_A_TURN:
                await self._core.flows.sleep(0)

    async def _tell_stored(self, scope: Scope, medium: Medium, names: Sequence[bytes]) -> None:
        for turn in _turns(names):
            coverage = self._coverage(scope)
            for name in turn:
                if not coverage.has(medium, name):
                    continue
                chunk = self._core.chunks.get(name)
                if chunk is not None:
                    self._append(scope, medium, [name], chunk)
                else:
                    self.unknown += 1
            if len(names) > _HASHES_A_TURN:
                await self._core.flows.sleep(0)

    def _coverage(self, scope: Scope) -> Coverage:
        return Coverage(self._core.l1, self._core.tiers.backends, scope)

    def _append(
        self, scope: Scope, medium: Medium, hashes: Sequence[bytes], chunk: Chunk | None
    ) -> None:
        self._events.append(Event(self._next, scope.model_name, medium, hashes, chunk))
        self._next += 1

    def _lose(self) -> None:
        """There were more changes than are kept: whoever has read so far has missed something."""
        self._events.clear()
        self._next += 1
        self.losses += 1


def _turns(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for at in range(0, len(names), _HASHES_A_TURN):
        yield names[at : at + _HASHES_A_TURN]
