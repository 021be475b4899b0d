"""What was used longest ago goes first, of one sequence its tail; being held moves nothing."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.entry import Entry, Space, State, sizes_of
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.order import Order
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.tiers.names import ObjectName
from tests.support import hashes
from tests.support.node import CHUNK, WORKERS, EngineDrivenWorker, HandleWorker, Node
from tests.support.tiers import DEFAULTS, Bench, Memory, hash_of

KEY = SpaceKey("m", 1, 0, "", b"layout")
PROMPT = list(range(8 * CHUNK))


hashes_of = partial(hashes.hashes_of, chunk_size=CHUNK)


@dataclass
class Site:
    """A worker over a node, and how its prompts should be ordered."""

    node: Node
    worker: HandleWorker | EngineDrivenWorker
    used: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    uses: int = 0

    def use(self, tokens: Sequence[int], end: int) -> None:
        self.uses += 1
        for depth, chunk_hash in enumerate(hashes_of(tokens)[:end]):
            self.used[chunk_hash] = self.uses, -depth

    def expected(self) -> list[bytes]:
        """By last use; of what was used together the last chunk first."""
        return sorted(self.used, key=lambda chunk_hash: self.used[chunk_hash])

    def settle(self) -> None:
        self.node.bench.settle()

    def close(self) -> None:
        self.settle()
        self.node.close()
        self.node.bench.tiers.close()


def make_site(mode: str, with_l2: bool) -> Site:
    adapters = [Memory()] if with_l2 else []
    bench = Bench(*adapters, slots=64, settings={"num_workers": 1})
    node = Node(bench.start())
    return Site(node, WORKERS[mode](node, 1))


@pytest.fixture(params=itertools.product(WORKERS, [False, True]), ids=str)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = make_site(*request.param)
    yield made
    made.close()


def test_the_tail_of_a_prompt_goes_first_before_and_after_its_use(site: Site) -> None:
    tail_first = hashes_of(PROMPT)[:4][::-1]
    site.worker.write(PROMPT, 0, 4)
    site.settle()
    assert site.node.order() == tail_first
    assert site.node.lookup(site.worker.key(PROMPT, 0, 4, "r")) == 4
    site.worker.read(PROMPT, 0, 4)
    assert site.node.order() == tail_first
    assert site.node.bench.l1.held == 0


def test_writing_behind_is_not_use() -> None:
    """What was written late does not outlive what was used later."""
    site = make_site("handle", with_l2=True)
    site.node.bench.busy = True
    early, late = [1] * 2 * CHUNK, [2] * 2 * CHUNK
    site.worker.write(early, 0, 2)
    site.worker.write(late, 0, 2)
    site.node.bench.busy = False
    site.settle()
    expected = hashes_of(early)[::-1] + hashes_of(late)[::-1]
    assert site.node.order() == expected
    site.close()


def test_a_head_counts_as_used_when_only_the_tail_was_taken(site: Site) -> None:
    """A worker that has the head in its own memory stores and loads the rest."""
    other = [9] * CHUNK
    site.worker.write(PROMPT, 0, 2)
    site.worker.write(other, 0, 1)
    site.worker.write(PROMPT, 2, 4)
    site.settle()
    assert site.node.order() == hashes_of(other) + hashes_of(PROMPT)[:4][::-1]
    site.worker.write(other, 0, 1)
    site.node.lookup(site.worker.key(PROMPT, 0, 4, "r"))
    site.worker.read(PROMPT, 3, 4)
    site.node.ask("end_session", "r")
    site.node.core.leases.expire(float("inf"))
    assert site.node.order() == hashes_of(other) + hashes_of(PROMPT)[:4][::-1]


@pytest.mark.parametrize("retain", [False, True])
def test_what_comes_from_l2_in_any_order_loses_its_tail_first(retain: bool) -> None:
    """Also what arrives after its lookup has been answered."""
    memory, gates = Memory(), {n: threading.Event() for n in range(1, 6)}
    old = Bench(memory).start()
    old.store(*gates)
    old.settle()

    def before(op: str, name: ObjectName | None) -> None:
        if op == "load" and name is not None:
            gates[int.from_bytes(name.hash, "big")].wait(20)

    memory.before = before
    policy = replace(DEFAULTS, retain=retain)
    bench = Bench(memory, policy=policy).start()
    lookup = bench.begin("r", *gates)
    for count, number in enumerate((4, 2, 1), 1):
        gates[number].set()
        bench.run_until(lambda count=count: bench.l1.objects == count)  # type: ignore[misc]
    bench.tiers.prefetches.finish_all()
    bench.leases.end(lookup)
    for count, number in enumerate((5, 3), 4):
        gates[number].set()
        bench.run_until(lambda count=count: bench.l1.objects == count)  # type: ignore[misc]
    assert bench.results == {"r": 2}
    assert [entry.hash for entry in bench.l1._policy.candidates()] == [
        hash_of(n) for n in (5, 4, 3, 2, 1)
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("with_l2", [False, True], ids=["l1", "l2"])
@pytest.mark.parametrize("mode", WORKERS)
def test_the_order_is_that_of_use_whatever_happens(
    mode: str, with_l2: bool, data: st.DataObject
) -> None:
    site = make_site(mode, with_l2)
    prompts = [[*PROMPT[: n * CHUNK], *[100 + n] * (6 - n) * CHUNK] for n in (0, 2, 4)]
    for number in range(data.draw(st.integers(1, 12))):
        tokens = data.draw(st.sampled_from(prompts))
        known = [h in site.used for h in hashes_of(tokens)]
        stored = known.index(False) if False in known else len(known)
        end = data.draw(st.integers(1, 6))
        start = data.draw(st.integers(0, end - 1))
        request = f"r{number}"
        if data.draw(st.booleans()):
            start = min(start, stored)
            if start < end:
                site.worker.write(tokens, start, end, request)
                site.use(tokens, end)
        elif stored:
            hits = site.node.lookup(site.worker.key(tokens, 0, end, request))
            assert hits == min(stored, end)
            if data.draw(st.booleans()):
                site.worker.read(tokens, min(start, hits - 1), hits, request)
                site.use(tokens, hits)
            site.node.core.leases.expire(float("inf"))
        if data.draw(st.booleans()):
            site.settle()
    site.settle()
    assert site.node.order() == site.expected()
    site.close()


def steps_of(function: Callable[[], object]) -> int:
    """How many lines of Python it runs."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("held", ["old", "scattered"])
@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"noop"}))
def test_an_eviction_among_many_held_objects_takes_few_steps(policy: str, held: str) -> None:
    size = 100_100 * ALIGNMENT
    l1 = L1(size, POLICIES[policy](Quotas(size)))
    l1.grow(0, size)
    entries = []
    for number in range(100_100):
        entry = l1.reserve(KEY, number.to_bytes(4, "big"), ALIGNMENT)
        assert entry is not None
        l1.commit(entry)
        entries.append(entry)
    kept = entries[-100:] if held == "old" else entries[:: len(entries) // 100][:100]
    for entry in set(entries).difference(kept):
        l1.lease(entry)
    for entry in kept:
        steps = steps_of(lambda: l1.evict(1, 0))
        assert entry.state is State.GONE
        assert steps < 200, "each of them, from the first on"
    assert l1.evict(1, 0) == 0
    last = entries[-101]
    assert steps_of(lambda: l1.unlease(last)) < 150
    assert l1.evict(1, 0) == 1 and last.state is State.GONE


def test_an_eviction_among_many_tenants_takes_few_steps() -> None:
    tenants, size = 5000, 15_000 * ALIGNMENT
    l1 = L1(size, POLICIES["IsolatedLRU"](Quotas(size)))
    l1.grow(0, size)
    for number in range(tenants * 3):
        key = KEY._replace(cache_salt=str(number % tenants))
        entry = l1.reserve(key, number.to_bytes(4, "big"), ALIGNMENT)
        assert entry is not None
        l1.commit(entry)
    steps = [steps_of(lambda: l1.evict(1, 0)) for _ in range(2 * tenants)]
    assert max(steps) < 600
    assert sum(steps) < 300 * len(steps)
    assert l1.objects == tenants


@given(st.lists(st.integers(0, 2**54 - 1) | st.integers(0, 300), max_size=60), st.data())
def test_an_order_is_a_sorted_set(places: list[int], data: st.DataObject) -> None:
    order, model = Order(), dict[int, Entry]()
    space = Space(L1(0, POLICIES["LRU"](Quotas(1))), KEY)
    for place in places:
        if place in model:
            order.remove(model.pop(place))
        else:
            model[place] = entry = Entry(space, b"", 0, sizes_of(1, 0))
            entry.place = place
            order.add(entry)
        if model and data.draw(st.booleans()):
            order.remove(model.pop(data.draw(st.sampled_from(sorted(model)))))
        assert list(order) == [model[place] for place in sorted(model)]
        assert len(order) == len(model)
    order.clear()
    assert not list(order) and not any(order._levels)
