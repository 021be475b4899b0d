"""The invariants of the index: publish last, no reuse under a reader or writer."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.check import problems
from sidecar.cache.entry import MAY_PIN, STEPS, Entry, Heat, IllegalStep, Space, State, sizes_of
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.cache.policies.lru import LRU
from sidecar.cache.policies.noop import NoEviction

KEY = SpaceKey("m", 1, 0, "", b"layout")
OTHER = KEY._replace(fingerprint=b"another")


def make(slots: int, policy: type = LRU) -> L1:
    l1 = L1(slots * ALIGNMENT, policy())
    l1.grow(0, slots * ALIGNMENT)
    return l1


def in_parts(first: int, second: int) -> L1:
    """A cache of two parts, of so many slots."""
    starts = (0, first * ALIGNMENT)
    l1 = L1((first + second) * ALIGNMENT, LRU(), starts=starts)
    l1.grow(starts[1], second * ALIGNMENT)
    l1.grow(0, starts[1])
    return l1


def part_of(entry: Entry, first: int = 3) -> int:
    """In which part of `in_parts` an object lies."""
    return int(entry.start >= first * ALIGNMENT)


def store(l1: L1, name: bytes, key: SpaceKey = KEY, near: int | None = None) -> Entry:
    entry = l1.reserve(key, name, ALIGNMENT, near=near)
    assert entry is not None
    l1.commit(entry)
    return entry


def visible(l1: L1, name: bytes, key: SpaceKey = KEY) -> bool:
    space = l1.space(key)
    return space is not None and name in space.ready


def test_only_commit_makes_a_key_visible() -> None:
    l1 = make(4)
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None and not visible(l1, b"a") and l1.knows(KEY, b"a")
    l1.commit(entry)
    assert visible(l1, b"a")


def test_abort_leaves_nothing() -> None:
    l1 = make(1)
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None
    l1.abort(entry)
    assert (l1.used_bytes, l1.objects, l1.writing) == (0, 0, 0)
    assert not l1.knows(KEY, b"a") and l1.space(KEY) is None


def test_layouts_do_not_see_each_other() -> None:
    l1 = make(4)
    store(l1, b"a")
    assert not visible(l1, b"a", OTHER)


def test_the_least_recently_used_goes_first() -> None:
    l1 = make(2)
    first = store(l1, b"1")
    store(l1, b"2")
    l1.touch(KEY, [first.hash])
    store(l1, b"3")
    assert visible(l1, b"1") and not visible(l1, b"2") and visible(l1, b"3")


def test_leased_and_pinned_objects_are_not_evicted() -> None:
    l1 = make(2)
    l1.lease(store(l1, b"leased"))
    l1.pin(store(l1, b"pinned"))
    assert l1.reserve(KEY, b"new", ALIGNMENT) is None
    assert visible(l1, b"leased") and visible(l1, b"pinned")


def test_without_eviction_a_full_cache_refuses() -> None:
    l1 = make(1, NoEviction)
    store(l1, b"1")
    assert l1.reserve(KEY, b"2", ALIGNMENT) is None and visible(l1, b"1")


def test_a_withdrawn_slot_is_not_reused_until_released() -> None:
    l1 = make(1)
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None
    l1.withdraw(entry)
    assert l1.reserve(KEY, b"b", ALIGNMENT) is None
    l1.release_withdrawn(entry)
    assert l1.reserve(KEY, b"b", ALIGNMENT) is not None


def test_a_forced_clear_frees_pinned_bytes_only_after_the_copy() -> None:
    l1 = make(1)
    entry = store(l1, b"a")
    l1.lease(entry)
    l1.pin(entry)
    assert l1.clear(force=False) == 1 and not visible(l1, b"a")
    assert l1.clear(force=True) == 0
    assert l1.reserve(KEY, b"b", ALIGNMENT) is None
    l1.unpin(entry)
    assert l1.reserve(KEY, b"b", ALIGNMENT) is not None
    l1.unlease(entry)
    assert l1.held == 0


def test_making_room_for_a_large_object_costs_about_its_size() -> None:
    """Going by age alone would evict most of a cache of small objects."""
    l1 = make(256)
    entries = [store(l1, bytes([i])) for i in range(256)]
    for entry in random.Random(1).sample(entries, 256):
        l1.touch(KEY, [entry.hash])
    held = entries[::40]
    for entry in held:
        l1.lease(entry)
    large = l1.reserve(KEY, b"large", 16 * ALIGNMENT)
    assert large is not None
    assert l1.objects == 256 - 16
    assert all(visible(l1, entry.hash) for entry in held)


def test_no_room_between_held_objects_evicts_nothing() -> None:
    l1 = make(64)
    entries = [store(l1, bytes([i])) for i in range(64)]
    for entry in entries[::4]:
        l1.lease(entry)
    assert l1.reserve(KEY, b"large", 4 * ALIGNMENT) is None
    assert l1.objects == 64


def test_an_object_larger_than_the_cache_evicts_nothing() -> None:
    l1 = make(2)
    store(l1, b"a")
    assert l1.reserve(KEY, b"huge", 3 * ALIGNMENT) is None and visible(l1, b"a")


def test_a_large_cache_that_was_cleared_is_empty_and_whole_at_once() -> None:
    """Its bytes are freed a few at a time, but nobody has to wait for that."""
    l1 = make(1000)
    for number in range(1000):
        store(l1, number.to_bytes(2, "big"))
    space = l1.space(KEY)
    assert space is not None
    first, read = list(space.ready.values())[:2]
    l1.lease(first)
    l1.pin(read)
    assert l1.clear(force=False) == 1000
    assert (l1.objects, l1.used_bytes) == (0, 2 * ALIGNMENT)
    assert not visible(l1, first.hash) and first.state is State.PROMISED
    assert l1.clear(force=True) == 0
    assert (l1.objects, l1.used_bytes, l1.space(KEY)) == (0, ALIGNMENT, None)
    l1.unpin(read)
    assert l1.used_bytes == 0
    whole = l1.reserve(KEY, b"whole", 1000 * ALIGNMENT)
    assert whole is not None and whole.start == 0


def test_objects_go_to_the_near_part_then_to_another_then_something_is_evicted() -> None:
    l1 = in_parts(3, 2)
    near = [store(l1, bytes([n]), near=1) for n in range(2)]
    far = [store(l1, bytes([n]), near=1) for n in range(2, 5)]
    assert [part_of(entry) for entry in near + far] == [1, 1, 0, 0, 0]
    assert l1.objects == 5
    sixth = store(l1, b"new", near=0)
    assert sixth.start == near[0].start, "in place of the oldest, wherever that is"
    assert not visible(l1, near[0].hash) and l1.objects == 5


def test_objects_that_are_near_nothing_go_where_most_is_free() -> None:
    l1 = in_parts(3, 4)
    assert [part_of(store(l1, bytes([n]))) for n in range(7)] == [1, 0, 1, 0, 1, 0, 1]


def test_what_is_free_in_two_parts_is_no_room_for_one_object() -> None:
    l1 = in_parts(3, 3)
    entries = [store(l1, bytes([n]), near=n // 3) for n in range(6)]
    assert l1.reserve(KEY, b"over both", 4 * ALIGNMENT) is None
    assert l1.objects == 6, "nothing is evicted in vain"
    for entry in (entries[2], entries[3]):
        assert l1.discard(entry)
    assert l1.reserve(KEY, b"over both", 4 * ALIGNMENT) is None
    assert l1.objects == 4
    assert l1.reserve(KEY, b"a whole part", 3 * ALIGNMENT) is not None
    assert l1.objects == 2, "what lay there is gone, and nothing else"


class L1Machine(RuleBasedStateMachine):
    """Random stores, copies and clears over a cache of eight slots in two parts and three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = in_parts(3, 5)
        self.writing: list[Entry] = []
        self.withdrawn: list[Entry] = []
        self.leased: list[Entry] = []
        self.pinned: list[Entry] = []

    @rule(
        name=st.integers(0, 12),
        slots=st.integers(1, 4),
        key=st.sampled_from([KEY, OTHER]),
        near=st.sampled_from([None, 0, 1]),
    )
    def reserve(self, name: int, slots: int, key: SpaceKey, near: int | None) -> None:
        if self.l1.knows(key, bytes([name])):
            return
        room, objects = self.parts_with_room(slots * ALIGNMENT), self.l1.objects
        entry = self.l1.reserve(key, bytes([name]), slots * ALIGNMENT - 1, near=near)
        if entry is not None:
            self.writing.append(entry)
        if room:
            assert entry is not None and self.l1.objects == objects
            assert part_of(entry) in ({near} & room or room)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), end=st.sampled_from(["commit", "abort", "withdraw"]))
    def end_write(self, data: st.DataObject, end: str) -> None:
        entry = self.writing.pop(data.draw(st.integers(0, len(self.writing) - 1)))
        getattr(self.l1, end)(entry)
        if end == "withdraw":
            self.withdrawn.append(entry)

    @precondition(lambda self: self.withdrawn)
    @rule()
    def release_withdrawn(self) -> None:
        self.l1.release_withdrawn(self.withdrawn.pop())

    @rule(name=st.integers(0, 12), how=st.sampled_from(["lease", "pin"]))
    def hold(self, name: int, how: str) -> None:
        space = self.l1.space(KEY)
        entry = space.ready.get(bytes([name])) if space else None
        if entry is not None:
            getattr(self.l1, how)(entry)
            (self.leased if how == "lease" else self.pinned).append(entry)

    @precondition(lambda self: self.leased)
    @rule()
    def unlease(self) -> None:
        self.l1.unlease(self.leased.pop(0))

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        self.l1.unpin(self.pinned.pop(0))

    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        """Nothing is found any more, and what is promised keeps its bytes."""
        ready = [entry for entry in self.leased if entry.state in MAY_PIN]
        self.l1.clear(force)
        assert self.l1.objects == 0
        assert all((entry.state is State.PROMISED) != force for entry in ready)

    def alive(self) -> set[Entry]:
        """Whatever occupies bytes."""
        spaces = [s for s in (self.l1.space(KEY), self.l1.space(OTHER)) if s]
        alive = {e for s in spaces for e in s.ready.values()}
        promised = {entry for entry in self.leased if entry.state is State.PROMISED}
        return alive | promised | set(self.writing) | set(self.withdrawn) | set(self.pinned)

    def parts_with_room(self, size: int) -> set[int]:
        """The parts in which so many free bytes lie together."""
        taken = [(e.start, e.end) for e in self.alive()]
        edges = [(at * ALIGNMENT, at * ALIGNMENT) for at in (0, 3, 8)]
        gaps = pairwise(sorted(taken + edges))
        return {int(a[1] >= 3 * ALIGNMENT) for a, b in gaps if b[0] - a[1] >= size}

    @invariant()
    def no_byte_belongs_to_two(self) -> None:
        ranges = sorted((e.offset, e.offset + e.size) for e in self.alive())
        assert all(a[1] <= b[0] for a, b in pairwise(ranges))

    @invariant()
    def every_slot_lies_in_one_part(self) -> None:
        assert all(e.end <= 3 * ALIGNMENT or e.start >= 3 * ALIGNMENT for e in self.alive())

    @invariant()
    def what_is_found_is_ready(self) -> None:
        for entry in [*self.leased, *self.pinned]:
            assert entry.state in (State.READY, State.PROMISED, State.GONE, State.DROPPED)
            if entry.state is State.READY:
                assert entry.space.ready[entry.hash] is entry

    @invariant()
    def counters_tell_the_truth(self) -> None:
        assert self.l1.writing == len(self.writing)
        assert self.l1.held == len({*self.leased, *self.pinned})
        assert 0 <= self.l1.used_bytes <= self.l1.capacity
        # The leases here are of no lookup.
        found = [line for line in problems(self.l1, Leases()) if "leases" not in line]
        assert not found

    def teardown(self) -> None:
        for end in (self.unlease, self.unpin, self.release_withdrawn):
            while {"unlease": self.leased, "unpin": self.pinned}.get(end.__name__, self.withdrawn):
                end()
        while self.writing:
            self.l1.abort(self.writing.pop())
        self.l1.clear(force=False)
        assert (self.l1.used_bytes, self.l1.objects, self.l1.held) == (0, 0, 0)


L1Machine.TestCase.settings = settings(max_examples=80, deadline=None)
TestL1 = L1Machine.TestCase


def test_what_is_leased_on_its_way_is_kept_when_it_arrives() -> None:
    l1 = make(1)
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None
    l1.lease(entry)
    l1.commit(entry)
    assert l1.reserve(KEY, b"b", ALIGNMENT) is None
    l1.unlease(entry)
    assert l1.reserve(KEY, b"b", ALIGNMENT) is not None


def test_a_lease_on_what_never_arrives_holds_nothing() -> None:
    l1 = make(1)
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None
    l1.lease(entry)
    l1.abort(entry)
    assert store(l1, b"b").start == entry.start
    l1.unlease(entry)
    assert (l1.held, l1.objects, l1.used_bytes) == (0, 1, ALIGNMENT)


def test_headroom_is_the_slots_and_not_the_objects() -> None:
    l1 = L1(4 * ALIGNMENT, LRU(), headroom=ALIGNMENT)
    l1.grow(0, 4 * ALIGNMENT)
    first, second = store(l1, b"a"), store(l1, b"b")
    for entry in (first, second):
        assert entry.offset == entry.start + ALIGNMENT
        assert entry.end == entry.offset + ALIGNMENT
    assert l1.used_bytes == 4 * ALIGNMENT
    third = store(l1, b"c")
    assert (third.start, visible(l1, b"a")) == (first.start, False)


def test_the_cold_go_first_until_somebody_comes_back_for_them() -> None:
    l1 = make(3)
    entries = []
    for name in (b"a", b"b", b"c"):
        entry = l1.reserve(KEY, name, ALIGNMENT)
        assert entry is not None
        entry.heat = Heat.WARM if name == b"a" else Heat.COLD
        l1.commit(entry)
        entries.append(entry)
    l1.lease(entries[1])
    l1.touch(KEY, [b"b"])
    l1.unlease(entries[1])
    store(l1, b"d")
    assert [visible(l1, name) for name in (b"a", b"b", b"c")] == [True, True, False]


CALLS: dict[str, Callable[[L1, Entry], object]] = {
    "publish": L1.commit,
    "abort": L1.abort,
    "withdraw": L1.withdraw,
    "release": L1.release_withdrawn,
    "drop": lambda l1, entry: l1.discard(entry, force=True),
    "drop pinned": lambda l1, entry: l1.discard(entry, force=True),
    "end of the last copy": L1.unpin,
    "lease": L1.lease,
    "pin": L1.pin,
    "unlease": L1.unlease,
    "unpin": L1.unpin,
    "prove": L1.prove,
    "disown": L1.disown,
    "clear": lambda l1, entry: l1.clear(force=False),
    "clear by force": lambda l1, entry: l1.clear(force=True),
}


def in_state(l1: L1, state: State) -> Entry:
    if state is State.INHERITED:
        start = l1._slots.take(ALIGNMENT)
        assert start is not None
        return l1.inherit(KEY, b"a", start, sizes_of(ALIGNMENT, 0), frozenset())
    entry = l1.reserve(KEY, b"a", ALIGNMENT)
    assert entry is not None
    ways: dict[State, list[str]] = {
        State.WRITING: [],
        State.WITHDRAWN: ["withdraw"],
        State.READY: ["publish"],
        State.DROPPED: ["publish", "pin", "drop"],
        State.PROMISED: ["publish", "lease", "clear"],
        State.GONE: ["abort"],
    }
    for call in ways[state]:
        CALLS[call](l1, entry)
    assert entry.state is state
    return entry


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", list(State))
def test_what_the_table_does_not_allow_changes_nothing(state: State, call: str) -> None:
    l1 = make(2)
    entry = in_state(l1, state)
    allowed = {
        "lease": state in (State.WRITING, State.READY),
        "pin": state in (State.READY, State.PROMISED),
        "unlease": state is State.PROMISED,
        "unpin": state is State.DROPPED,
        "drop pinned": state is State.READY,
        "clear": True,
        "clear by force": True,
    }
    used = l1.used_bytes
    if allowed.get(call, call in STEPS[state]):
        CALLS[call](l1, entry)
    else:
        with pytest.raises(IllegalStep, match="chunk 61"):
            CALLS[call](l1, entry)
        assert (entry.state, l1.used_bytes) == (state, used)
    assert not [line for line in problems(l1, Leases()) if "leases" not in line]


def test_a_slot_is_freed_by_who_has_it() -> None:
    l1 = make(2)
    entry = store(l1, b"a")
    impostor = Entry(Space(l1, KEY), b"b", entry.start, entry.sizes)
    with pytest.raises(IllegalStep):
        l1._slots.free(impostor)
    l1.discard(entry)
    with pytest.raises(IllegalStep):
        l1._slots.free(entry)
    assert not problems(l1, Leases())


def test_the_check_finds_what_is_wrong() -> None:
    """Whichever account is falsified."""
    falsify: list[Callable[[L1, Entry], object]] = [
        lambda l1, e: l1._slots._parts[0].give(e.start, ALIGNMENT),
        lambda l1, e: setattr(l1, "objects", 7),
        lambda l1, e: setattr(l1, "writing", 7),
        lambda l1, e: setattr(l1, "held", -1),
        lambda l1, e: setattr(e, "leases", 1),
        lambda l1, e: setattr(e, "pins", -1),
        lambda l1, e: setattr(e, "state", State.GONE),
        lambda l1, e: setattr(e, "hash", b"z"),
        lambda l1, e: l1._policy.remove(e),
        lambda l1, e: l1._slots._at.clear(),
        lambda l1, e: l1._slots._by_size.pop(e.slot_bytes),
        lambda l1, e: setattr(l1._slots, "used_bytes", 0),
        lambda l1, e: e.space.ready.clear(),
    ]
    for change in falsify:
        l1 = make(3)
        store(l1, b"a")
        entry = store(l1, b"b")
        l1.lease(store(l1, b"c"))
        space = l1.space(KEY)
        assert space is not None
        l1.unlease(space.ready[b"c"])
        assert not problems(l1, Leases())
        change(l1, entry)
        assert problems(l1, Leases())


def test_objects_share_what_says_that_nothing_is_missing() -> None:
    """A million of them would have a million sets, which the garbage collector walks."""
    cache = L1(1 << 20, LRU())
    cache.grow(0, 1 << 20)
    made = [cache.reserve(KEY, bytes([n]) * 32, 4096, frozenset([3][:0])) for n in range(2)]
    assert made[0] is not None and made[1] is not None
    assert made[0].missing is made[1].missing
