"""Requests that make no sense: answered with no, nothing stored, nothing written, nothing held."""

from __future__ import annotations

import pytest

from tests.conformance.rig import Rig, assert_same
from tests.support.client import TIMEOUT
from tests.support.layouts import BLOCKS


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda ids: ids[:-1], id="short"),
        pytest.param(lambda ids: [], id="empty"),
        pytest.param(lambda ids: [-1, *ids[1:]], id="negative"),
        pytest.param(lambda ids: [*ids[:-1], -BLOCKS], id="negative-wraps-to-first"),
        pytest.param(lambda ids: [*ids[:-1], BLOCKS], id="one-too-high"),
        pytest.param(lambda ids: [*ids[:-1], 2**31 - 1], id="int32-limit"),
        pytest.param(lambda ids: [*ids[:-1], 2**62], id="huge"),
    ],
)
def test_bad_block_ids(rig: Rig, spoil) -> None:  # type: ignore[no-untyped-def]
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)[0]
    before = worker.cache.image()
    assert not worker.store(tokens, [spoil(blocks)])
    assert scheduler.lookup(tokens) == 0
    assert worker.store(tokens, [blocks])
    assert scheduler.lookup(tokens) == 2
    assert not worker.retrieve(tokens, [spoil(rig.blocks(worker, 2, first=20)[0])])
    assert_same(worker.cache.image(), before)
    scheduler.free(tokens, 0, len(tokens))


@pytest.mark.parametrize(
    ("start", "end"),
    [(1, 65), (0, 63), (128, 64), (-64, 64), (0, 64 * 1000), (64, 64), (2**62, 2**62 + 64)],
)
def test_ranges_that_are_no_chunks_of_the_tokens(rig: Rig, start: int, end: int) -> None:
    """Unaligned, reversed, negative, beyond the tokens, empty, huge: never more than was there."""
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    before = worker.cache.image()
    empty = start == end
    assert worker.store(tokens, blocks, start=start, end=end) in (
        (True, False) if empty else (False,)
    )
    assert scheduler.lookup(tokens) == 0
    assert worker.store(tokens, blocks)
    assert not worker.retrieve(tokens, blocks, start=start, end=end) or empty
    assert_same(worker.cache.image(), before)


def test_ranges_of_the_engine_mode(rig: Rig) -> None:
    worker = rig.worker(mode="engine_driven")
    tokens = rig.tokens(2)
    for start, end in ((1, 65), (0, 63), (128, 64), (-64, 64), (0, 64_000)):
        key = worker.key(tokens, start, end, worker=0)
        context = worker.rpc.prepare_store(key, worker.instance).result(TIMEOUT).context
        assert context == {"slots": [], "chunk_indices": []}
        assert worker.rpc.commit_store(key, worker.instance, b"").result(TIMEOUT) is False
        found = worker.rpc.prepare_retrieve(key, worker.instance).result(TIMEOUT)
        assert not found.success
        assert worker.rpc.commit_retrieve(key, worker.instance).result(TIMEOUT) is True


@pytest.mark.parametrize("skip", [-1, -64, 129, 2**62])
def test_impossible_skips(rig: Rig, skip: int) -> None:
    """Nothing is written outside the range; what is asked for beyond it is no error either."""
    worker = rig.worker()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.store(tokens, blocks)
    before = worker.cache.image()
    worker.retrieve(tokens, blocks, skip=skip)
    assert_same(worker.cache.image(), before)


@pytest.mark.parametrize("rank", [1, 7, -1])
def test_a_rank_outside_the_world(rig: Rig, rank: int, mode: str) -> None:
    worker = rig.worker(mode=mode, rank=rank)
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    worker.store(tokens, blocks)
    assert rig.scheduler().lookup(tokens) == 0


def test_a_store_of_another_model_than_the_registered(rig: Rig, mode: str) -> None:
    """The key says whose chunks they are; an instance stores for the model it registered."""
    worker = rig.worker(mode=mode)
    worker.model = "someone else's"
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    worker.store(tokens, blocks)
    assert rig.scheduler().lookup(tokens) == 0


def test_a_pickled_commit_is_refused(rig: Rig) -> None:
    """A client that could not open the arena sends pickles; they are not read."""
    worker = rig.worker(mode="engine_driven")
    tokens = rig.tokens(1)
    key = worker.key(tokens, 0, rig.chunk, worker=0)
    bomb = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."
    worker.rpc.prepare_store(key, worker.instance).result(TIMEOUT)
    assert worker.rpc.commit_store(key, worker.instance, bomb).result(TIMEOUT) is False
    assert rig.scheduler().lookup(tokens) == 0


def test_refusals_are_counted(rig: Rig) -> None:
    worker = rig.worker()
    name = "lmcache_mp_refusals_total"
    before = rig.server.metrics().total(name)
    assert not worker.store(rig.tokens(1), [[-1] * 4])
    assert rig.server.metrics().total(name) > before
