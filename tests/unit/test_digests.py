"""Digests of what is stored: in the pauses of transfers, and at last without a pause."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.policies.lru import LRU
from sidecar.cache.recovery import Restored
from sidecar.flow import Flows
from sidecar.handlers.digests import LOOKED_AT, TURN_OBJECTS, Digests, digest_of
from sidecar.handlers.inheritance import Inheritance

PAGE = 4096
SLOTS = 4 * TURN_OBJECTS


class Bench:
    """An L1, its journal's list, and a clock that moves by timers alone."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.idle = 0.0
        self.closing = False
        self.copies = self
        self.undigested: deque[Entry] = deque()
        self.digests: dict[bytes, bytes] = {}
        self.turns: list[float] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self.flows = Flows(self._later)
        self.arena = SimpleNamespace(bytes=np.zeros(SLOTS * PAGE, np.uint8))
        self.l1 = L1(SLOTS * PAGE, LRU())
        self.l1.grow(0, SLOTS * PAGE)
        Digests(self, self)  # type: ignore[arg-type]

    def now(self) -> float:
        return self.clock

    def idle_seconds(self) -> float:
        return self.idle

    def submit(self, pieces: Sequence[Callable[[], None]], on_done: Callable[[bool], None]) -> None:
        self.turns.append(self.clock)
        for piece in pieces:
            piece()
        on_done(True)

    @contextmanager
    def pinned(self, entries: Sequence[Entry]) -> Iterator[None]:
        yield

    def proven(self, entry: Entry, digest: bytes) -> None:
        assert entry.state is State.READY
        self.digests[entry.hash] = digest

    def store(self, *numbers: int) -> list[Entry]:
        found = []
        for number in numbers:
            name = number.to_bytes(32, "big")
            entry = self.l1.reserve(SpaceKey("model", 1, 0, "", b""), name, PAGE)
            assert entry is not None
            self.arena.bytes[entry.offset : entry.offset + 8] = np.frombuffer(name[-8:], np.uint8)
            self.l1.commit(entry)
            found.append(entry)
        self.undigested.extend(found)
        return found

    def pass_time(self, seconds: float) -> None:
        until = self.clock + seconds
        self.flows.run()
        while self._timers and self._timers[0][0] <= until:
            self.clock, _, callback = heapq.heappop(self._timers)
            callback()
            self.flows.run()
        self.clock = until

    def _later(self, delay: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.clock + delay, len(self._timers), callback))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_pause_is_used(bench: Bench) -> None:
    entries = bench.store(*range(2 * TURN_OBJECTS))
    bench.idle = 10.0
    bench.pass_time(2.0)
    assert bench.digests == {e.hash: digest_of(bench.arena.bytes, e) for e in entries}
    assert not bench.undigested and len(bench.turns) == 2


def test_without_a_pause_there_is_a_turn_once_in_a_while(bench: Bench) -> None:
    bench.store(*range(SLOTS))
    bench.pass_time(60.0)
    assert len(bench.digests) == SLOTS
    apart = np.diff(bench.turns)
    assert len(bench.turns) == SLOTS // TURN_OBJECTS and (apart >= 1.0).all()


def test_what_is_gone_does_not_pile_up_under_load(bench: Bench) -> None:
    """What is evicted before it had its turn is forgotten, a bounded number of objects at once."""
    for number in range(3 * LOOKED_AT):
        (entry,) = bench.store(number)
        bench.l1.discard(entry)
    looked_at = 0

    class Counted(deque[Entry]):
        def popleft(self) -> Entry:
            nonlocal looked_at
            looked_at += 1
            return super().popleft()

    bench.undigested = Counted(bench.undigested)
    Digests(bench, bench)  # type: ignore[arg-type]
    assert looked_at <= LOOKED_AT
    bench.pass_time(0.1)
    assert not bench.undigested and not bench.turns


def test_what_is_gone_does_not_keep_those_waiting_who_prove_the_rest(bench: Bench) -> None:
    """A clear may have taken all that an earlier server has left."""
    (entry,) = bench.store(1)
    bench.l1.discard(entry)

    class Counted(list[tuple[Entry, bytes]]):
        def pop(self, *at: Any) -> tuple[Entry, bytes]:
            popped.append(len(bench.turns))
            return super().pop(*at)

    popped: list[int] = []
    left = Restored(unproven=Counted([(entry, b"d" * 12)] * (3 * LOOKED_AT)))
    Inheritance(bench, left, own_name_told=False)  # type: ignore[arg-type]
    bench.pass_time(10.0)
    assert not left.unproven and max(Counter(popped).values()) <= LOOKED_AT


def test_what_is_gone_meanwhile_gets_no_digest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = bench.store(1, 2)
    bench.idle = 10.0
    submit = bench.submit

    def discard_first(pieces: Sequence[Callable[[], None]], done: Callable[[bool], None]) -> None:
        bench.l1.discard(gone)
        submit(pieces, done)

    monkeypatch.setattr(bench, "submit", discard_first)
    bench.pass_time(2.0)
    assert list(bench.digests) == [kept.hash] and not bench.undigested
