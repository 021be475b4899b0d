"""Readers of KV events know what is there, however fast it changes and whatever is forgotten."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.keys import SpaceKey
from sidecar.cache.leases import Scope
from sidecar.handlers.kv_events import chunks, history
from sidecar.handlers.kv_events.chunks import Chunks
from sidecar.handlers.kv_events.history import History
from tests.support.tiers import Bench, Memory, hash_of

SPACES = [SpaceKey("model", 1, 0, salt, bytes(16)) for salt in ("", "salt")]
NUMBERS = range(12)


class Site:
    """A cache, who tells of it, and a reader that heeds all that it is told."""

    def __init__(self, most_changes: int = 1 << 17) -> None:
        self.bench = Bench(Memory(), slots=8).start()
        self.bench.l1.changes = Changes(most_changes)
        self.chunks = Chunks(1)
        core = SimpleNamespace(
            l1=self.bench.l1, tiers=self.bench.tiers, chunks=self.chunks, flows=self.bench.flows
        )
        self.history = History(cast("Any", core), 1 << 20)
        self.history.begin()
        self._cursor = self.history.last
        self.known = set[tuple[Medium, bytes]]()

    def note(self, space: SpaceKey, *numbers: int) -> None:
        tokens = b"".join(number.to_bytes(4, "big") for number in numbers)
        self.chunks.note(Scope("model", 1, space.cache_salt), list(map(hash_of, numbers)), tokens)

    def read(self) -> None:
        for _ in range(200):
            self.bench.fire_timers()
            self.bench.flows.run()
        page = self.history.since(self._cursor, 1 << 20)
        assert not page.lost
        self._cursor = page.cursor
        for event in page.events:
            names = {(event.medium, each) for each in event.hashes}
            assert not names & self.known if event.chunk else names <= self.known, "told twice"
            self.known = self.known | names if event.chunk else self.known - names

    def check(self) -> None:
        """Nothing is known to be there that is not; what was not forgotten is known."""
        self.read()
        there = {(Medium.CPU, name) for space in self.bench.l1.spaces() for name in space.ready}
        assert {each for each in self.known if each[0] is Medium.CPU} <= there
        assert all(self.chunks.get(name) is not None for _, name in self.known)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), most_changes=st.sampled_from([3, 1 << 17]))
def test_readers_know_nothing_that_is_not_there(seed: int, most_changes: int) -> None:
    with (
        patch.object(chunks, "_MAX_BYTES", 5 * (4 + 300)),
        patch.object(history, "_HASHES_A_TURN", 2),
    ):
        change_and_read(Site(most_changes), random.Random(seed))


def change_and_read(site: Site, chance: random.Random) -> None:
    for _ in range(40):
        space = chance.choice(SPACES)
        number = chance.choice(NUMBERS)
        step = chance.random()
        if step < 0.5:
            site.note(space, *range(number))
            if not site.bench.l1.knows(space, hash_of(number)):
                site.note(space, number)
                site.bench.store(number, space=space)
        elif step < 0.6:
            site.bench.l1.evict(chance.randrange(4), 0)
        elif step < 0.65:
            site.bench.l1.clear(force=False)
        elif step < 0.8:
            site.note(space, number)
        if chance.random() < 0.5:
            site.check()
    site.check()
    site.bench.l1.clear(force=True)
    site.check()
    assert not {medium for medium, _ in site.known} & {Medium.CPU}


def test_what_changed_faster_than_it_was_told_is_looked_at_again() -> None:
    site = Site(most_changes=2)
    site.note(SPACES[0], *NUMBERS)
    site.bench.store(0, 1, 2, space=SPACES[0])
    site.bench.settle()
    site.read()
    assert site.bench.l1.evict(3, 0) == 3
    site.bench.store(7, space=SPACES[0])
    site.bench.store(8, space=SPACES[0])
    site.bench.store(9, space=SPACES[0])
    site.read()
    assert site.history.losses == 1
    in_l1 = {name for medium, name in site.known if medium is Medium.CPU}
    assert in_l1 == {hash_of(number) for number in (7, 8, 9)}


def test_many_changes_are_told_in_turns() -> None:
    """Others have their turn in between."""
    site, told = Site(), [0]
    for number in range(1000):
        site.bench.l1.changes.stored(Medium.CPU, SPACES[0], [number.to_bytes(32, "big")])
    while told[-1] < 1000:
        site.bench.flows.run()
        site.bench.fire_timers()
        told.append(site.history.unknown)
    assert all(after - before <= 64 for before, after in pairwise(told))


def test_a_long_prompt_that_is_there_is_told_in_turns() -> None:
    site = Site()
    site.bench.store(*range(8), space=SPACES[0])
    site.bench.settle()
    site.read()
    assert not site.known and site.history.unknown
    told = [site.history.last]
    with patch.object(history, "_HASHES_A_TURN", 2):
        site.note(SPACES[0], *range(8))
        for _ in range(20):
            site.bench.flows.run()
            site.bench.fire_timers()
            told.append(site.history.last)
    assert all(after - before <= 2 for before, after in pairwise(told))
    site.check()
    assert {name for medium, name in site.known if medium is Medium.CPU} == {
        hash_of(number) for number in range(8)
    }


@pytest.mark.parametrize("salt", ["", "salt"])
def test_a_chunk_whose_tokens_are_forgotten_is_taken_back(salt: str) -> None:
    with patch.object(chunks, "_MAX_BYTES", 2 * (4 + 300)):
        site = Site()
    space = SpaceKey("model", 1, 0, salt, bytes(16))
    site.note(space, 1)
    site.bench.store(1, space=space)
    site.read()
    assert (Medium.CPU, hash_of(1)) in site.known
    site.note(space, 2)
    site.note(space, 3)
    site.read()
    assert (Medium.CPU, hash_of(1)) not in site.known
    site.note(space, 1)  # somebody asks for it again
    site.read()
    assert (Medium.CPU, hash_of(1)) in site.known
