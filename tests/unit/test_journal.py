"""What is written down of an L1 is what is in it after every step; nothing else is believed."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.arena import PIECE_BYTES
from sidecar.cache.check import problems
from sidecar.cache.entry import Entry, State
from sidecar.cache.journal import Journal
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.cache.policies.lru import LRU
from sidecar.cache.records import (
    AGE_AT,
    HEAD_BYTES,
    MAX_GROUPS,
    MAX_SIZE,
    MAX_SPACES,
    RECORD_BYTES,
    SPACE_BYTES,
    TABLE_AT,
    VERSION,
    Unusable,
    head_of,
    table_bytes,
    write_head,
)
from sidecar.cache.recovery import Legacy, Restored, read_legacy, restore
from sidecar.handlers.stored_objects import StoredObjects

SIZE = PIECE_BYTES
HEAD = head_of(SIZE, 0, [0], 256)
SPACES = [SpaceKey("model", 1, 0, salt, b"layout") for salt in ("", "salt", "another")]
# None of these has a place in the index.
ODD_SPACE, ODD_GROUP = SpaceKey("model" * 250, 1, 0, "", b"layout"), frozenset({MAX_GROUPS})
# Few slots of few sizes, so that they are evicted and reused all the time.
SIZES = [SIZE // 8, SIZE // 4]


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Site:
    """An L1, its index and the memory in which both lie; `crash` is a look from outside."""

    def __init__(self, arena_fd: int) -> None:
        self.arena_fd = arena_fd
        self.fd = os.memfd_create("index")
        os.ftruncate(self.fd, TABLE_AT + table_bytes(SIZE))
        self.l1 = L1(SIZE, LRU())
        self.l1.grow(0, SIZE)
        self.journal = self.l1.journal = Journal(os.dup(self.fd), HEAD, {})

    def legacy(self) -> Legacy:
        return read_legacy(self.fd, self.arena_fd, HEAD)

    def succeed(self, is_alone: bool, in_doubt: bool = False) -> Restored:
        """The server of before is gone, and this is the next one. `in_doubt`: what there is may
        have been cleared.
        """
        legacy = self.legacy()
        legacy = legacy.without_objects() if in_doubt else legacy
        os.close(self.journal._fd)
        age = 1 + max((left.age for left in legacy.slots), default=0)
        self.journal = Journal(os.dup(self.fd), HEAD, legacy.spaces, age)
        self.l1 = L1(SIZE, LRU())
        restored = restore(self.l1, self.journal, legacy, is_alone)
        if in_doubt:
            self.l1.clear(force=False)
        return restored

    def ready(self) -> list[Entry]:
        return [e for space in self.l1.spaces() for e in space.ready.values()]

    def close(self) -> None:
        for fd in (self.fd, self.journal._fd):
            os.close(fd)


@pytest.fixture(scope="module")
def arena() -> Iterator[int]:
    """One for all: what is in it does not matter here, but that it is there."""
    fd = os.memfd_create("arena")
    os.write(fd, bytes(SIZE))
    yield fd
    os.close(fd)


@pytest.fixture
def site(arena: int) -> Iterator[Site]:
    made = Site(arena)
    yield made
    made.close()


def store(l1: L1, number: int, space: SpaceKey = SPACES[0], size: int = SIZES[0]) -> Entry:
    entry = l1.reserve(space, hash_of(number), size)
    assert entry is not None
    l1.commit(entry)
    return entry


def agree(site: Site, exactly_read: bool = True) -> None:
    """What a successor would read is what is there."""
    objects: dict[int, Any] = {}
    taken, nameless = set(), {}
    for entry in site.l1._slots:
        brought_again = entry.state is State.INHERITED and entry.hash in entry.space.ready
        if entry.state is State.READY and is_odd(entry):
            nameless[entry.start] = entry in site.journal._readers
        elif entry.state is State.READY or (entry in site.l1.unproven and not brought_again):
            objects[entry.start] = (entry.space.key, entry.hash, entry.size, entry.missing)
        elif entry.state is not State.GONE:
            taken.add((entry.start, entry.size))
    legacy = site.legacy()
    found_nameless = {x.start: x.held for x in legacy.slots if x.start in nameless}
    assert found_nameless == nameless
    legacy.slots = [x for x in legacy.slots if x.start not in nameless]
    found = {
        left.start: (left.key, left.hash, left.sizes.object, left.missing)
        for left in legacy.slots
        if left.key is not None
    }
    assert found == objects
    assert {(x.start, x.sizes.object) for x in legacy.slots if x.key is None} == taken
    assert not legacy.trusted
    read = {left.start for left in legacy.slots if left.held and left.key is not None}
    readers = {entry.start for entry in site.journal._readers if entry.state is State.READY}
    readers -= nameless.keys()
    assert read == readers if exactly_read else read >= readers


def is_odd(entry: Entry) -> bool:
    """Whether it is of no successor's use."""
    return entry.space.key == ODD_SPACE or entry.missing == ODD_GROUP


def any_space(chance: random.Random) -> SpaceKey:
    return chance.choice([*SPACES, ODD_SPACE])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_index_agrees_after_every_step(arena: int, seed: int) -> None:
    site, chance = Site(arena), random.Random(seed)
    writing: list[Entry] = []
    withdrawn: list[Entry] = []
    reading: list[Entry] = []

    def reserve() -> None:
        space, name = any_space(chance), hash_of(chance.randrange(6))
        if not site.l1.knows(space, name):
            missing = chance.choice([frozenset[int]()] * 4 + [frozenset({3}), ODD_GROUP])
            entry = site.l1.reserve(space, name, chance.choice(SIZES), missing)
            writing.extend([entry] if entry else [])

    def begin_to_read() -> None:
        for entry in chance.sample(site.ready(), min(1, len(site.ready()))):
            site.l1.pin(entry)
            site.journal.reading([entry])
            reading.append(entry)

    def end_reading() -> None:
        entry = reading.pop()
        site.journal.read([entry])
        site.l1.unpin(entry)

    def withdraw() -> None:
        withdrawn.append(writing.pop())
        site.l1.withdraw(withdrawn[-1])

    def clear() -> None:
        site.l1.clear(force=chance.random() < 0.5)

    def discard() -> None:
        for entry in chance.sample(site.ready(), min(1, len(site.ready()))):
            site.l1.discard(entry, force=True)

    for _ in range(60):
        steps = [reserve, reserve, reserve, begin_to_read, discard]
        if writing:
            steps += [lambda: site.l1.commit(writing.pop()), lambda: site.l1.abort(writing.pop())]
            steps += [lambda: site.l1.commit(writing.pop()), withdraw]
        if withdrawn:
            steps.append(lambda: site.l1.release_withdrawn(withdrawn.pop()))
        if reading:
            steps.append(end_reading)
        if chance.random() < 0.03:
            steps = [clear]
        chance.choice(steps)()
        agree(site)
        assert not problems(site.l1, Leases())
    site.close()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_index_agrees_in_life_after_life(arena: int, seed: int) -> None:
    """Servers end in any way, in the middle of proving what those before have left."""
    site, chance = Site(arena), random.Random(seed)
    for _ in range(5):
        left = site.succeed(chance.random() < 0.5, in_doubt=chance.random() < 0.2)
        live(site, chance, left)
    site.close()


def live(site: Site, chance: random.Random, left: Restored) -> None:
    """A few steps of a server, each of which may have been its last; some end in order."""
    l1 = site.l1
    reading: list[Entry] = []

    def bring() -> None:
        space, name = any_space(chance), hash_of(chance.randrange(6))
        if not l1.knows(space, name) and (entry := l1.reserve(space, name, SIZES[0])):
            (l1.commit if chance.random() < 0.8 else l1.withdraw)(entry)

    def digest() -> None:
        for entry in site.ready():
            site.journal.proven(entry, b"d" * 12)

    def discard() -> None:
        for entry in chance.sample(site.ready(), min(1, len(site.ready()))):
            l1.discard(entry)

    def begin_to_read() -> None:
        for entry in chance.sample(site.ready(), min(1, len(site.ready()))):
            l1.pin(entry)
            site.journal.reading([entry])
            reading.append(entry)

    def end_reading() -> None:
        entry = reading.pop()
        site.journal.read([entry])
        l1.unpin(entry)

    def delete() -> None:
        space, name = chance.choice(SPACES), hash_of(chance.randrange(6))
        delete_by_key(l1, space, name)
        found = {(x.key, x.hash) for x in site.legacy().slots if not x.held}
        assert (space, name) not in found or l1.knows(space, name)

    def prove() -> None:
        entry, _ = left.unproven.pop()
        if entry.state is State.INHERITED:
            (l1.prove if chance.random() < 0.7 else l1.disown)(entry)

    def others_are_gone() -> None:
        while left.suspects:
            l1.disown(left.suspects.pop())

    agree(site, exactly_read=False)
    for _ in range(chance.randrange(20)):
        steps = [bring, bring, bring, digest, discard, delete, begin_to_read]
        steps += [end_reading] if reading else []
        steps += [prove] * 3 if left.unproven else []
        steps += [others_are_gone] if left.suspects else []
        steps += [partial(l1.evict, 1, 0)]
        if chance.random() < 0.03:
            steps = [partial(l1.clear, False)]
        chance.choice(steps)()
        agree(site, exactly_read=False)
        assert not problems(l1, Leases())
    if chance.random() < 0.3:
        l1.leave()
        assert site.legacy().trusted


def delete_by_key(l1: L1, space: SpaceKey, *hashes: bytes) -> tuple[int, int]:
    """As `DELETE /cache/objects` does it."""
    objects = StoredObjects(SimpleNamespace(l1=l1))  # type: ignore[arg-type]
    rank = 1 << 24 | 1 << 8  # of a world of one
    keys = [(each, space.model_name, rank, space.cache_salt) for each in hashes]
    return objects.delete_from_l1(keys, force=False)


def test_what_is_deleted_before_it_is_proven_is_never_found(site: Site) -> None:
    for number in range(4):
        site.journal.proven(store(site.l1, number, SPACES[number % 2]), b"d" * 12)
    left, heir = site.succeed(is_alone=True), site.l1
    store(heir, 0)  # brought again
    assert delete_by_key(heir, SPACES[0], *map(hash_of, range(4))) == (2, 0)
    states = {entry.hash: entry.state for entry, _ in left.unproven}
    assert [states[hash_of(n)] for n in range(4)] == [State.GONE, State.INHERITED] * 2
    assert heir.objects == 0 and not heir.knows(SPACES[0], hash_of(2))
    assert not problems(heir, Leases())


def test_a_clear_does_not_go_through_what_is_unproven_one_by_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        site.journal.proven(store(site.l1, number), b"d" * 12)
    left, heir = site.succeed(is_alone=True), site.l1
    written = []
    monkeypatch.setattr(site.journal, "_write", lambda at, data: written.append(at))
    heir.clear(force=False)
    assert {at for at in written if at >= TABLE_AT} == set()
    assert not heir.unproven and not heir.used_bytes and not heir.spaces()
    assert {entry.state for entry, _ in left.unproven} == {State.GONE}
    assert not problems(heir, Leases())


def test_a_clean_end_is_trusted_and_keeps_the_order(site: Site) -> None:
    for number in range(6):
        store(site.l1, number)
    site.l1.touch(SPACES[0], [hash_of(2)])
    under_way = site.l1.reserve(SPACES[1], hash_of(9), SIZES[0])
    assert under_way is not None
    order = [entry.hash for entry in site.l1._policy.candidates()]
    site.l1.leave()
    assert site.legacy().trusted
    left, heir = site.succeed(is_alone=False), site.l1
    assert [entry.hash for entry in heir._policy.candidates()] == order
    assert [entry.start for entry in left.suspects] == [under_way.start]
    assert not (left.unproven or left.being_read)
    assert heir.usable_bytes == SIZE and not problems(heir, Leases())
    # What others may still write to is nobody's, until they are gone.
    for number in range(20, 40):
        assert store(heir, number).start != under_way.start
    heir.disown(left.suspects[0])
    assert under_way.start in {store(heir, number).start for number in range(40, 60)}
    assert not problems(heir, Leases())
    assert not site.legacy().trusted  # while the heir runs


def test_of_what_is_in_doubt_only_the_slots_in_others_hands_are_left(site: Site) -> None:
    entries = [store(site.l1, number) for number in range(4)]
    for entry in entries:
        site.journal.proven(entry, b"d" * 12)
    site.l1.pin(entries[1])
    site.journal.reading([entries[1]])
    written = site.l1.reserve(SPACES[1], hash_of(9), SIZES[0])
    assert written is not None
    site.l1.leave()
    left = site.succeed(is_alone=False, in_doubt=True)
    assert {entry.start for entry in left.suspects} == {entries[1].start, written.start}
    assert not (site.l1.objects or left.unproven or left.being_read)
    assert site.l1.used_bytes == 2 * SIZES[0]
    assert [x.key for x in site.legacy().slots] == [None, None] and not site.legacy().spaces
    assert not problems(site.l1, Leases())


def test_after_a_crash_only_what_has_a_digest_is_worth_a_try(site: Site) -> None:
    entries = [store(site.l1, number) for number in range(4)]
    site.journal.proven(entries[1], b"d" * 12)
    left, heir = site.succeed(is_alone=True), site.l1
    assert heir.objects == 0 and not left.suspects
    ((unproven, digest),) = left.unproven
    assert (unproven.hash, digest) == (hash_of(1), b"d" * 12)
    assert heir.prove(unproven) and heir.objects == 1
    assert not problems(heir, Leases())


def test_what_is_unproven_gives_way_to_what_is_new(site: Site) -> None:
    for number in range(8):
        site.journal.proven(store(site.l1, number), b"d" * 12)
    left, heir = site.succeed(is_alone=True), site.l1
    again = store(heir, 0)
    assert [e.state for e, _ in left.unproven] == [State.GONE] + [State.INHERITED] * 7
    for number in range(50, 52):
        store(heir, number, size=SIZES[1])
    assert again.state is State.READY and len(heir.unproven) == 3
    assert not problems(heir, Leases())
    heir.leave()  # what has not proven itself is not trusted by the next one
    assert {left.hash for left in site.legacy().slots} == {
        hash_of(0), hash_of(50), hash_of(51)
    }  # fmt: skip


def test_what_is_unproven_goes_before_what_is_in_use(site: Site) -> None:
    for number in range(7):
        site.journal.proven(store(site.l1, number), b"d" * 12)
    left = site.succeed(is_alone=True)
    assert site.l1.evict(1, 0) == 0  # the policy names nothing, so nothing has to go
    new = store(site.l1, 50)
    assert site.l1.evict(2, 0) == 2
    assert [e.hash for e, _ in left.unproven if e.state is State.GONE] == [hash_of(0), hash_of(1)]
    assert site.l1.evict(10, 0) == 6 and new.state is State.GONE
    assert not problems(site.l1, Leases())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_index_is_refused_or_says_nothing_wrong(arena: int, data: st.DataObject) -> None:
    """Whatever byte of it is another: no object that was not there, and no exception."""
    site = Site(arena)
    for number in range(5):
        store(site.l1, number, SPACES[number % 3])
    odd = store(site.l1, 6, ODD_SPACE)
    site.l1.pin(odd)
    site.journal.reading([odd])
    site.l1.reserve(SPACES[0], hash_of(7), SIZES[0])
    site.l1.leave()
    before = {(x.start, x.key, x.hash, x.sizes) for x in site.legacy().slots}
    last_space = HEAD_BYTES + SPACE_BYTES * (MAX_SPACES - 1)
    records = [TABLE_AT + x.start // 4096 * RECORD_BYTES for x in site.legacy().slots]
    places = [range(HEAD_BYTES), *(range(at, at + RECORD_BYTES) for at in records)]
    places += [
        range(at, at + 100) for at in range(last_space - 3 * SPACE_BYTES, TABLE_AT, SPACE_BYTES)
    ]
    place = data.draw(st.sampled_from(places))
    at = data.draw(st.integers(place.start, place.stop - 1))
    old = os.pread(site.fd, 1, at)
    os.pwrite(site.fd, bytes([old[0] ^ data.draw(st.integers(1, 255))]), at)
    try:
        legacy = site.legacy()
    except Unusable:
        pass
    else:
        assert {(x.start, x.key, x.hash, x.sizes) for x in legacy.slots} <= before
    site.close()


def test_a_damaged_age_is_no_age_of_what_comes_later(site: Site) -> None:
    """It is the one part of a record that its check does not cover."""
    at = TABLE_AT + store(site.l1, 1).start // 4096 * RECORD_BYTES + AGE_AT
    site.l1.leave()
    os.pwrite(site.fd, b"\xff" * (RECORD_BYTES - AGE_AT), at)
    with pytest.raises(Unusable, match="damaged"):
        site.legacy()


def test_an_index_lives_for_longer_than_its_ages_did_once(site: Site) -> None:
    """Every store and every digest makes all that comes later younger."""
    site.journal._ages = count((1 << 32) - 2)
    for number in range(4):
        site.journal.proven(store(site.l1, number), b"d" * 12)
    ages = {left.hash: left.age for left in site.legacy().slots}
    assert sorted(ages, key=lambda each: ages[each]) == [hash_of(number) for number in range(4)]
    left = site.succeed(is_alone=True)
    assert [entry.hash for entry, _ in left.unproven] == [hash_of(number) for number in range(4)]
    store(site.l1, 9)
    assert max(site.legacy().slots, key=lambda left: left.age).hash == hash_of(9)


def test_an_object_of_four_gib_ends_the_index_and_not_its_store() -> None:
    size = 4 * MAX_SIZE
    l1, index = L1(size, LRU()), os.memfd_create("index")
    l1.grow(0, size)
    l1.journal = Journal(index, head_of(size, 0, [0], 256), {})
    entry = store(l1, 1, size=MAX_SIZE + 1)
    assert entry.state is State.READY and l1.journal.failed
    os.close(index)


def test_what_is_nobody_s_counts_for_no_tenant(arena: int) -> None:
    site = Site(arena)
    ready, written = store(site.l1, 1, SPACES[1]), site.l1.reserve(SPACES[1], hash_of(2), SIZES[0])
    assert written is not None
    site.l1.pin(ready)
    site.journal.reading([ready])
    left = site.succeed(is_alone=False)
    assert {entry.start for entry in left.suspects} == {ready.start, written.start}
    assert site.l1.quotas.salts() == [] and site.l1.used_bytes == 2 * SIZES[0]
    store(site.l1, 3)
    assert site.l1.quotas.used("") == SIZES[0]
    assert not problems(site.l1, Leases())
    for entry in left.suspects:
        site.l1.disown(entry)
    assert site.l1.used_bytes == site.l1.quotas.used("") == SIZES[0]
    assert not problems(site.l1, Leases())
    site.close()


def test_an_index_of_the_version_before_is_refused_as_a_whole(site: Site) -> None:
    """Its head is shorter, and its records have another layout."""
    store(site.l1, 1)
    os.pwrite(site.fd, write_head(msgspec.structs.replace(HEAD, version=1, clean=True)), 0)
    with pytest.raises(Unusable, match="another version"):
        site.legacy()


@pytest.mark.parametrize(
    "change",
    [
        {"version": VERSION - 1}, {"version": VERSION + 1}, {"boot_id": "another"},
        {"arena_bytes": SIZE * 2}, {"headroom": 4096}, {"parts": [0, 1]}, {"chunk_size": 16},
    ],
    ids=str,
)  # fmt: skip
def test_who_is_no_successor_is_told_why(site: Site, change: dict[str, Any]) -> None:
    with pytest.raises(Unusable, match="not"):
        read_legacy(site.fd, site.arena_fd, msgspec.structs.replace(HEAD, **change))


def test_an_index_that_cannot_be_written_is_no_index(site: Site) -> None:
    store(site.l1, 1)
    writable, site.journal._fd = site.journal._fd, os.open(os.devnull, os.O_RDONLY)
    second = store(site.l1, 2)
    os.close(site.journal._fd)
    site.journal._fd = writable
    site.l1.discard(second)
    site.l1.leave()
    assert site.journal.failed


def test_an_index_that_cannot_be_mapped_is_no_index(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(site.l1, 1)

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    site.l1.leave()
    with pytest.raises(Unusable, match="not complete"):
        site.legacy()
