"""The server makes nothing that only the garbage collector could free, and keeps nothing.

What the collector has to walk costs the wire thread its time, so objects are out of its sight.
That is safe as long as they come apart by themselves.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.keys import BYTES_PER_TOKEN
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Scope
from sidecar.cache.policies.lru import LRU
from sidecar.handlers import protecting
from sidecar.handlers.kv_events.chunks import Chunks
from sidecar.handlers.native.descriptions import Descriptions, Name
from sidecar.tiers.base import Found
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import object_name
from sidecar.tiers.settings import EvictionSettings
from sidecar.wire.tokens import TokenLists
from tests.support.node import CHUNK, WORKERS, Node
from tests.support.tiers import SPACE, Bench, Memory, hash_of

CHUNKS = 4


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Nothing is collected but when the test asks for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def churn(node: Node, mode: str, rounds: range) -> None:
    """Registrations, stores, lookups, loads from L1 and L2, evictions, clears."""
    bench = node.bench
    for number in rounds:
        worker, request = WORKERS[mode](node, 1), f"r{number}"
        tokens = [number] * CHUNKS * CHUNK
        key = worker.key(tokens, 0, CHUNKS, request)
        worker.write(tokens, 0, CHUNKS, request)
        bench.settle()
        if number % 2:
            bench.l1.clear(force=True)
        assert node.lookup(key) == CHUNKS
        worker.read(tokens, 0, CHUNKS, request)
        node.lookup(worker.key(tokens[::-1], 0, CHUNKS, "another"))
        node.ask("end_session", request)
        bench.leases.expire(float("inf"))
        if number % 3 == 0:
            uid = node.call("clear")
            bench.run_until(lambda uid=uid: node.answered(uid))  # type: ignore[misc]
        node.ask("unregister_kv_cache", 1)
        node.replies.by_uid.clear()
        bench.l1.take_evicted()
        bench.fire_timers()


@pytest.mark.parametrize("mode", WORKERS)
def test_nothing_is_left_for_the_collector(
    mode: str, by_hand: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(Bench(Memory(), slots=4 * CHUNKS, settings={"num_workers": 1}).start())
    # Requests are remembered up to bounds: such as are reached at once.
    monkeypatch.setattr(protecting, "_REMEMBERED_CHUNKS", CHUNKS)
    node.core.tokens = TokenLists(1 << 20, CHUNK, max_bytes=4096)
    node.core.recent._most = CHUNKS
    churn(node, mode, range(30))
    gc.collect()
    unreachable, blocks = [], []
    for start in (30, 60, 90):
        churn(node, mode, range(start, start + 30))
        unreachable.append(gc.collect())
        blocks.append(sys.getallocatedblocks())
    # At the least: what other threads of the tests do meanwhile is not of the server.
    assert min(unreachable) == 0
    assert min(blocks[1] - blocks[0], blocks[2] - blocks[1]) < 30 * CHUNKS  # one an object
    node.close()
    node.bench.tiers.close()


def test_the_collector_does_not_see_objects(by_hand: None) -> None:
    """However many there are: the lists and dictionaries that hold nothing else included."""

    def fill(start: int) -> int:
        hashes = [hash_of(number) for number in range(start, start + 5000)]
        entries = [l1.reserve(SPACE, each, 100) for each in hashes]
        l1.publish(SPACE, [entry for entry in entries if entry], hashes)
        return len(entries)

    l1 = L1(1 << 30, LRU())
    l1.grow(0, 1 << 30)
    fill(0)
    before = len(gc.get_objects())
    fill(5000)
    gc.collect()
    assert l1.objects == 10_000
    assert len(gc.get_objects()) - before < 50
    assert not any(gc.is_tracked(entry) for entry in l1.spaces()[0].ready.values())


@pytest.mark.parametrize("policy", ["LRU", "IsolatedLRU"])
def test_the_collector_does_not_see_what_is_in_l2(by_hand: None, policy: str) -> None:
    """What was stored, found by a scan, is leaving, or has been swept away."""
    catalog = Catalog(1 << 40, EvictionSettings(eviction_policy=policy), Changes())

    def fill(start: int) -> None:
        names = [object_name(SPACE, hash_of(number)) for number in range(start, start + 6000)]
        for name in names[:2000]:
            catalog.add(name, 4096)
        catalog.recover(Found(name, 4096, 0.0) for name in names[2000:4000])
        catalog.order_recovered(names[3000:4000])
        catalog.touch_sequence(names[1000:3000])
        for name in names[4000:]:
            catalog.doom(name, "checksum")

    fill(0)
    before = walked()
    fill(6000)
    assert (len(catalog), catalog.leaving) == (8000, 4000)
    assert walked() - before < 6000 / 20  # dictionaries of many names each
    swept = catalog.sweep()
    assert len(swept) == 12_000
    assert walked() - before < 12_000 / 20


def test_the_collector_does_not_see_what_is_told_of_objects(by_hand: None) -> None:
    """Their changes, tokens and descriptions."""
    changes, chunks, descriptions = Changes(), Chunks(4), Descriptions(lambda name: False)
    changes.begin()

    def fill(start: int) -> None:
        hashes = [hash_of(number) for number in range(start, start + 5000)]
        for each in hashes:
            changes.stored(Medium.STORAGE, SPACE, [each])
            descriptions.put(Name(SPACE, each), bytes(10))
        chunks.note(Scope("m", 1, ""), hashes, bytes(4 * BYTES_PER_TOKEN * 5000))
        chunks.take_fresh()

    fill(0)
    gc.collect()
    before = len(gc.get_objects())
    fill(5000)
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def walked() -> int:
    """How many references a full collection follows."""
    gc.collect()
    return sum(len(gc.get_referents(each)) for each in gc.get_objects())
