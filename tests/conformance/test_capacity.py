"""A cache smaller than what is stored into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conformance.rig import Rig, expect_moved
from tests.support.layouts import FUSED, KVCache, one_group
from tests.support.server import Server

L1_BYTES = 64 << 20
CHUNK_BYTES = 64 * 16 * 1024  # tokens x layers x (heads x 2 x size x 2 bytes)


def big_cache() -> KVCache:
    """A mebibyte a chunk: the cache holds fewer than 64 of them."""
    return one_group(FUSED, layers=16, heads=4, size=64, blocks=100)


@pytest.fixture
def small(new_server: Callable[..., Server]) -> Iterator[Rig]:
    # Only stores make room: in the background, what nobody holds yet could go before its lookup.
    full = ("--eviction-trigger-watermark", "1")
    server = new_server(*full, l1_size_gb=L1_BYTES / 2**30).start()
    rig = Rig(server, "small")
    yield rig
    rig.close()
    server.assert_no_leases()


def test_old_objects_make_room(small: Rig, mode: str) -> None:
    """Twice the capacity goes through; the newest are there, the oldest are gone."""
    worker, scheduler = small.worker(big_cache(), mode), small.scheduler()
    blocks = small.blocks(worker, 4)
    for variant in range(32):
        assert worker.store(small.tokens(4, variant), blocks)
    found = {}
    for variant in range(32):
        tokens = small.tokens(4, variant)
        found[variant] = scheduler.lookup(tokens)
        scheduler.free(tokens, 0, found[variant] * small.chunk)
    assert found[0] == 0
    assert found[31] == 4
    assert 0 < sum(found.values()) * CHUNK_BYTES <= L1_BYTES
    l1 = small.server.l1()
    assert l1["memory_used_bytes"] <= l1["memory_total_bytes"]
    assert small.server.metrics().total("lmcache_mp_l1_evicted_chunks_total") > 0


def test_what_a_lookup_holds_survives(small: Rig, mode: str) -> None:
    """A reported hit stays readable, whatever is stored meanwhile."""
    worker, scheduler = small.worker(big_cache(), mode), small.scheduler()
    held, blocks = small.tokens(4, 1000), small.blocks(worker, 4)
    origin = worker.cache.image()
    assert worker.store(held, blocks)
    assert scheduler.lookup(held, "held") == 4
    other = small.blocks(worker, 4, first=40)
    for variant in range(40):
        assert worker.store(small.tokens(4, variant), other)
    before, target = worker.cache.image(), small.blocks(worker, 4, first=70)
    assert worker.retrieve(held, target, request="held")
    expect_moved(worker, before, origin, blocks, target)


def test_a_cache_full_of_held_objects(small: Rig, mode: str) -> None:
    """No room and nothing to evict: stores are passed over silently until something is freed."""
    worker, scheduler = small.worker(big_cache(), mode), small.scheduler()
    blocks = small.blocks(worker, 4)
    held = {}
    for variant in range(20):
        tokens = small.tokens(4, variant)
        assert worker.store(tokens, blocks)
        held[variant] = scheduler.lookup(tokens, f"hold-{variant}")
    assert held[0] == 4
    assert sum(held.values()) < 80
    late = small.tokens(4, 5000)
    assert worker.store(late, blocks)
    assert scheduler.lookup(late, "late") < 4
    scheduler.free(late, 0, len(late), "late")
    for variant, chunks in held.items():
        tokens = small.tokens(4, variant)
        scheduler.free(tokens, 0, chunks * small.chunk, f"hold-{variant}")
    assert worker.store(late, blocks)
    assert scheduler.lookup(late) == 4
    scheduler.free(late, 0, len(late))


def test_clear_keeps_what_is_held(small: Rig, mode: str) -> None:
    """Not forced: the held stay. Forced: all are gone, and their bytes stay until the copy ends."""
    worker, scheduler = small.worker(big_cache(), mode), small.scheduler()
    held, loose = small.tokens(2, 1), small.tokens(2, 2)
    blocks = small.blocks(worker, 2)
    origin = worker.cache.image()
    assert worker.store(held, blocks)
    assert worker.store(loose, blocks)
    assert scheduler.lookup(held, "held") == 2
    scheduler.clear()
    assert scheduler.lookup(loose) == 0
    target = small.blocks(worker, 2, first=40)
    before = worker.cache.image()
    assert worker.retrieve(held, target, request="held")
    expect_moved(worker, before, origin, blocks, target)
    assert worker.store(loose, blocks)
    assert scheduler.lookup(loose) == 2
    scheduler.clear(force=True)
    assert scheduler.lookup(loose, "after") == 0
    scheduler.free(loose, 0, len(loose))
    assert worker.store(loose, blocks)
    assert scheduler.lookup(loose) == 2
    scheduler.free(loose, 0, len(loose))


def test_an_object_larger_than_the_cache(small: Rig, mode: str) -> None:
    """A chunk that can never fit is never found; what fits is served as before."""
    worker = small.worker(one_group(FUSED, layers=80, heads=32, size=128, blocks=5), mode)
    tokens = small.tokens(1)
    worker.store(tokens, small.blocks(worker, 1))
    assert small.scheduler().lookup(tokens) == 0
    modest = small.worker(mode=mode, model="modest")
    assert modest.store(tokens, small.blocks(modest, 1))
    assert small.scheduler(model="modest").lookup(tokens) == 1
    small.scheduler(model="modest").free(tokens, 0, len(tokens))
