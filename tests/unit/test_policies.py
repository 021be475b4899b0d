"""Eviction policies: heads outlive tails under each; what ARC keeps, and how it learns."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.check import problems
from sidecar.cache.entry import Entry, Heat, Space, State, sizes_of
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.cache.policies import POLICIES
from sidecar.cache.policies.arc import ARC
from sidecar.cache.policies.history import History
from sidecar.cache.policies.isolated import Isolated
from sidecar.cache.quotas import Quotas

KEY = SpaceKey("m", 1, 0, "", b"layout")
EVICTING = sorted(set(POLICIES) - {"noop"})


def hash_of(path: str) -> bytes:
    """Of the chunk at the end of a path of chunks: it stands for all before it as well."""
    return hashlib.sha256(path.encode()).digest()


def prompt(name: str, chunks: int) -> list[bytes]:
    return [hash_of(f"{name}/{chunk}") for chunk in range(chunks)]


class Cache:
    """An L1 as requests use it."""

    def __init__(self, slots: int, policy: str, limits: dict[str, int] | None = None) -> None:
        """`limits`: of salts, in slots."""
        quotas = Quotas(
            slots * ALIGNMENT, {salt: n * ALIGNMENT for salt, n in (limits or {}).items()}
        )
        self.l1 = L1(slots * ALIGNMENT, POLICIES[policy](quotas))
        self.l1.grow(0, slots * ALIGNMENT)
        self.leases = Leases()

    def request(self, hashes: list[bytes], key: SpaceKey = KEY) -> int:
        """Look up, load, store the rest; how many chunks were a hit."""
        l1, space, found = self.l1, self.l1.space(key), list[Entry]()
        for chunk_hash in hashes:
            entry = space.ready.get(chunk_hash) if space is not None else None
            if entry is None:
                break
            found.append(entry)
        for entry in found:
            l1.lease(entry)
        l1.touch(key, hashes[: len(found)])
        new = [
            entry
            for chunk_hash in hashes
            if not l1.knows(key, chunk_hash)
            and (entry := l1.reserve(key, chunk_hash, ALIGNMENT)) is not None
        ]
        l1.publish(key, new, hashes)
        for entry in found:
            l1.unlease(entry)
        assert problems(l1, self.leases) == []
        return len(found)

    def store(self, chunk_hash: bytes, pages: int, key: SpaceKey) -> Entry | None:
        """One object of so many pages; None if there is no room for it, or it is there already."""
        if self.l1.knows(key, chunk_hash):
            return None
        entry = self.l1.reserve(key, chunk_hash, pages * ALIGNMENT)
        if entry is not None:
            self.l1.commit(entry)
        assert problems(self.l1, self.leases) == []
        return entry

    def has(self, hashes: list[bytes], key: SpaceKey = KEY) -> int:
        space = self.l1.space(key)
        return sum(chunk_hash in space.ready for chunk_hash in hashes) if space else 0


@settings(deadline=None)
@pytest.mark.parametrize("policy", EVICTING)
@given(paths=st.lists(st.text("ab", min_size=1, max_size=5), max_size=60))
def test_what_is_evicted_is_always_a_tail(policy: str, paths: list[str]) -> None:
    """Whatever was asked for, of every prompt what is there has no gap."""
    cache, whole = Cache(12, policy), dict[bytes, list[bytes]]()
    for path in paths:
        hashes = [hash_of(path[:end]) for end in range(1, len(path) + 1)]
        whole |= {chunk_hash: hashes[:end] for end, chunk_hash in enumerate(hashes)}
        cache.request(hashes)
        space = cache.l1.space(KEY)
        assert space is not None
        for chunk_hash in space.ready:
            assert all(before in space.ready for before in whole[chunk_hash])


def test_arc_keeps_what_was_asked_for_again_when_much_is_asked_for_once() -> None:
    shared = prompt("shared", 4)
    kept = {}
    for policy in ("LRU", "ARC"):
        cache = Cache(20, policy)
        for number in range(5):
            cache.request(prompt(f"earlier {number}", 4))
        cache.request(shared)
        assert cache.request(shared) == 4
        for number in range(8):
            cache.request(prompt(f"once {number}", 4))
        kept[policy] = cache.has(shared)
    assert kept == {"LRU": 0, "ARC": 4}


def test_arc_lets_go_in_the_end() -> None:
    cache = Cache(20, "ARC")
    shared = prompt("shared", 4)
    cache.request(shared)
    cache.request(shared)
    for number in range(200):
        cache.request(prompt(f"once {number}", 4))
    assert cache.has(shared) == 0


def test_storing_a_prompt_piece_by_piece_is_no_second_use() -> None:
    cache, whole = Cache(20, "ARC"), prompt("p", 4)
    for end in range(1, 5):
        new = cache.l1.reserve(KEY, whole[end - 1], ALIGNMENT)
        assert new is not None
        cache.l1.publish(KEY, [new], whole[:end])
    space = cache.l1.space(KEY)
    assert space is not None
    assert {entry.heat for entry in space.ready.values()} == {Heat.WARM}


def test_arc_learns_from_what_comes_back() -> None:
    """What was stored once, went and came back, shortens the lead of the others."""

    def lead(cache: Cache) -> float:
        assert isinstance(cache.l1._policy, ARC)
        return cache.l1._policy._lead

    cache = Cache(20, "ARC")
    before = lead(cache)
    for number in [*range(8), *range(4)]:
        cache.request(prompt(f"once {number}", 4))
    assert lead(cache) < before
    cache, before = Cache(20, "ARC"), before
    for number in range(8):
        cache.request(prompt(f"twice {number}", 4))
        cache.request(prompt(f"twice {number}", 4))
    assert lead(cache) == before
    for number in range(2):
        assert cache.request(prompt(f"twice {number}", 4)) == 0
    assert lead(cache) > before


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=200))
def test_a_history_counts_what_it_remembers(steps: list[tuple[int, bool, bool]]) -> None:
    """It may forget, but makes nothing up."""
    history, model = History(), dict[int, bool]()
    space = Space(L1(0, POLICIES["LRU"](Quotas(1))), KEY)
    assert history.take(Entry(space, bytes(32), 0, sizes_of(1, 0))) is None
    history.make_room(16)
    for number, adds, hot in steps:
        entry = Entry(space, hash_of(str(number)), 0, sizes_of(1, 0))
        if adds:
            history.add(entry, hot)
            model[number] = hot
        else:
            assert history.take(entry) in (None, model.pop(number, None))
        cells = [cell for cell in history._cells if cell]
        assert len(cells) <= len(model)
        hot_cells = sum(cell & 1 for cell in cells)
        assert history.count == {True: hot_cells, False: len(cells) - hot_cells}


@pytest.mark.parametrize("policy", EVICTING)
def test_places_are_distinct_and_bounded(policy: str) -> None:
    made, places = POLICIES[policy](Quotas(1)), set[int]()
    entry = Entry(Space(L1(0, made), KEY), b"", 0, sizes_of(1, 0))
    for heat, _ in itertools.product(Heat, range(100)):
        entry.heat = heat
        places.add(made.next_place(entry))
    assert len(places) == 300 and max(places) < 2**54


def of(salt: str) -> SpaceKey:
    return KEY._replace(cache_salt=salt)


ISOLATED = [policy for policy in EVICTING if policy.startswith("Isolated")]


@pytest.mark.parametrize("policy", ISOLATED)
@pytest.mark.parametrize("limits", [{}, {"steady": 20, "scanner": 20}, {"scanner": 10}])
def test_who_reads_a_lot_takes_nothing_from_others(policy: str, limits: dict[str, int]) -> None:
    """Their hits are as many as alone, in half of the cache."""
    hits = {}
    for scans in (False, True):
        cache, hits[scans] = Cache(40, policy, limits), 0
        for turn in range(50):
            for number in range(4):
                hits[scans] += cache.request(prompt(f"steady {number}", 5), of("steady"))
            for number in range(4 * scans):
                cache.request(prompt(f"scan {turn} {number}", 5), of("scanner"))
    assert hits[True] == hits[False] == 49 * 4 * 5


@pytest.mark.parametrize("policy", ISOLATED)
@settings(deadline=None)
@given(
    limits=st.dictionaries(st.sampled_from("abc"), st.integers(0, 14)),
    requests=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.integers(1, 5))),
)
def test_nobody_has_more_than_the_quota(
    policy: str, limits: dict[str, int], requests: list[tuple[str, int, int]]
) -> None:
    cache = Cache(12, policy, limits)
    quotas = cache.l1.quotas
    for salt, name, chunks in requests:
        cache.request(prompt(f"{name}", chunks), of(salt))
        assert not list(quotas.exceeded())
        order = list(cache.l1._policy.candidates())
        most = max(quotas.share(other) for other in quotas.salts()) if order else 0
        assert not order or quotas.share(order[0].space.key.cache_salt) * 1.05 >= most


@pytest.mark.parametrize("policy", ISOLATED)
@settings(deadline=None)
@given(
    limits=st.dictionaries(st.sampled_from("abc"), st.integers(1, 14)),
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 5))),
)
def test_nobody_loses_to_who_has_more(
    policy: str, limits: dict[str, int], requests: list[tuple[str, int, int]]
) -> None:
    """Of the limit, that is: but for the one object that makes it so."""
    cache = Cache(12, policy, limits)
    quotas = cache.l1.quotas
    for salt, name, chunks in requests:
        before = {other: quotas.used(other) for other in "abc" if other != salt}
        cache.request(prompt(f"{name}", chunks), of(salt))
        more = (quotas.used(salt) - ALIGNMENT) / quotas.limit(salt)
        for other, used in before.items():
            if quotas.used(other) < used:
                assert (quotas.used(other) + ALIGNMENT) / quotas.limit(other) > more


@pytest.mark.parametrize("policy", ISOLATED)
@settings(deadline=None)
@given(
    limits=st.dictionaries(st.sampled_from("abc"), st.integers(1, 18)),
    stores=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(1, 5), st.booleans()),
        max_size=60,
    ),
)
def test_nobody_loses_to_who_has_more_whatever_the_sizes(
    policy: str, limits: dict[str, int], stores: list[tuple[str, int, int, bool]]
) -> None:
    """Of the limit, once the object is there; and what is held stays. Where no room in a row can be
    made that way, nothing is stored and nobody else loses anything.
    """
    cache = Cache(16, policy, limits)
    quotas, held = cache.l1.quotas, list[Entry]()
    for salt, number, pages, is_held in stores:
        before = {other: quotas.used(other) for other in "abc" if other != salt}
        entry = cache.store(hash_of(f"{number}"), pages, of(salt))
        for other, used in before.items():
            if quotas.used(other) < used:
                assert entry is not None and used / quotas.limit(other) > quotas.share(salt)
        if entry is not None and is_held and len(held) < 4:
            cache.l1.pin(entry)
            held.append(entry)
        assert all(each.state is State.READY for each in held)
        assert not list(quotas.exceeded())


def test_a_store_of_larger_objects_takes_nothing_of_who_has_no_more() -> None:
    cache = Cache(16, "IsolatedLRU", {"a": 4, "b": 12})
    for number in range(4):  # each of a's has b's on both sides
        cache.store(hash_of(f"a {number}"), 1, of("a"))
        for third in range(3):
            cache.store(hash_of(f"b {number} {third}"), 1, of("b"))
    for number in range(8):
        cache.store(hash_of(f"large {number}"), 4, of("b"))
        assert cache.l1.quotas.used("a") == 4 * ALIGNMENT
        assert cache.l1.quotas.used("b") <= 12 * ALIGNMENT


def test_a_quota_that_is_lowered_is_enforced_in_turns() -> None:
    cache = Cache(20, "IsolatedLRU")
    cache.request(prompt("p", 16), of("a"))
    cache.request(prompt("p", 4), of("b"))
    cache.l1.quotas.limits["a"] = 6 * ALIGNMENT
    assert [cache.l1.evict_over_quota(8) for _ in range(3)] == [8, 2, 0]
    assert cache.has(prompt("p", 6), of("a")) == 6 and cache.has(prompt("p", 4), of("b")) == 4


def test_without_isolation_quotas_only_count() -> None:
    cache = Cache(8, "LRU", {"a": 2})
    cache.request(prompt("p", 4), of("a"))
    assert cache.l1.quotas.used("a") == 4 * ALIGNMENT
    assert cache.l1.evict_over_quota(8) == 0


def test_what_is_remembered_of_shares_does_not_grow() -> None:
    cache = Cache(40, "IsolatedLRU")
    for turn in range(300):
        cache.request(prompt(f"p {turn}", 1 + turn % 7), of(f"{turn % 5}"))
        if turn % 10 == 0:
            cache.l1.evict(100, 0)
    policy = cache.l1._policy
    assert isinstance(policy, Isolated)
    assert len(policy._heap) <= 2 * len(policy._known) + 64
    cache.l1.evict(100, 0)
    assert not policy._orders and not policy._known
