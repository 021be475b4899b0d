"""Locks of lookups, and requests that end early, in every order that two sockets allow."""

from __future__ import annotations

from tests.conformance.rig import Rig, expect_moved
from tests.support.client import Scheduler, Worker


def stored(rig: Rig, mode: str, chunks: int = 3) -> tuple[Worker, Scheduler, tuple[int, ...]]:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens = rig.tokens(chunks)
    assert worker.store(tokens, rig.blocks(worker, chunks))
    return worker, scheduler, tokens


def test_a_lookup_holds_and_a_retrieve_releases(rig: Rig, mode: str) -> None:
    worker, scheduler, tokens = stored(rig, mode)
    rig.server.assert_no_leases()
    assert scheduler.lookup(tokens) == 3
    assert rig.server.leases() > 0
    assert worker.retrieve(tokens, rig.blocks(worker, 3, first=20))
    rig.server.assert_no_leases()


def test_a_hit_is_answered_once(rig: Rig, mode: str) -> None:
    _, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    assert scheduler.query(scheduler.last) == 0
    scheduler.free(tokens, 0, len(tokens))


def test_a_lookup_that_needs_no_load(rig: Rig, mode: str) -> None:
    _, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))
    scheduler.end()
    rig.server.assert_no_leases()


def test_free_and_retrieve_partition_the_hit(rig: Rig, mode: str) -> None:
    """What vLLM has is freed (its end floored to a chunk), the rest is loaded."""
    worker, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, rig.chunk + 7)
    assert worker.retrieve(tokens, rig.blocks(worker, 2, first=20), start=rig.chunk)
    rig.server.assert_no_leases()


def test_the_tail_of_a_hit_is_freed(rig: Rig, mode: str) -> None:
    worker, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 2 * rig.chunk, 3 * rig.chunk)
    assert worker.retrieve(tokens, rig.blocks(worker, 2, first=20), end=2 * rig.chunk)
    rig.server.assert_no_leases()


def test_a_second_lookup_replaces_the_first(rig: Rig, mode: str) -> None:
    """Preemption: the same request looks up again; only one set of locks remains."""
    worker, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    assert scheduler.lookup(tokens) == 3
    assert scheduler.lookup(tokens[: 2 * rig.chunk]) == 2
    assert worker.retrieve(tokens, rig.blocks(worker, 2, first=20), end=2 * rig.chunk)
    rig.server.assert_no_leases()


def test_a_lookup_nobody_asked_about_is_replaced(rig: Rig, mode: str) -> None:
    """The first answer was never fetched."""
    _, scheduler, tokens = stored(rig, mode)
    scheduler.begin_lookup(tokens)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))
    rig.server.assert_no_leases()


def test_free_twice_takes_nobody_elses_locks(rig: Rig, mode: str) -> None:
    """Two requests hold the same objects; one frees once too often."""
    worker, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens, "a") == 3
    assert scheduler.lookup(tokens, "b") == 3
    scheduler.free(tokens, 0, len(tokens), "a")
    scheduler.free(tokens, 0, len(tokens), "a")
    assert rig.server.leases() > 0
    assert worker.retrieve(tokens, rig.blocks(worker, 3, first=20), request="b")
    rig.server.assert_no_leases()


def test_free_without_a_lookup(rig: Rig, mode: str) -> None:
    _, scheduler, tokens = stored(rig, mode)
    scheduler.free(tokens, 0, len(tokens), "never looked up")
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))


def test_the_session_ends_before_its_last_store(rig: Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert scheduler.lookup(tokens, "early") == 0
    assert worker.store(tokens, [blocks[0][:4]], end=rig.chunk, request="early")
    scheduler.end("early")
    assert worker.store(tokens, [blocks[0][4:]], start=rig.chunk, request="early")
    assert scheduler.lookup(tokens, "later") == 2
    scheduler.free(tokens, 0, len(tokens), "later")


def test_the_session_ends_before_its_retrieve(rig: Rig, mode: str) -> None:
    """END_SESSION keeps the locks; the retrieve that arrives after it works and releases them."""
    worker, scheduler, tokens = stored(rig, mode)
    source, target = rig.blocks(worker, 3), rig.blocks(worker, 3, first=20)
    origin = worker.cache.image()
    assert scheduler.lookup(tokens) == 3
    scheduler.end()
    assert worker.retrieve(tokens, target)
    expect_moved(worker, origin, origin, source, target)
    rig.server.assert_no_leases()


def test_the_session_ends_between_lookup_and_free(rig: Rig, mode: str) -> None:
    _, scheduler, tokens = stored(rig, mode)
    assert scheduler.lookup(tokens) == 3
    scheduler.end()
    scheduler.free(tokens, 0, len(tokens))
    rig.server.assert_no_leases()


def test_many_requests_share_one_prefix(rig: Rig, mode: str) -> None:
    """Each lookup holds for itself; the last retrieve leaves nothing held."""
    worker, scheduler, tokens = stored(rig, mode)
    names = [f"request-{i}" for i in range(8)]
    for name in names:
        assert scheduler.lookup(tokens, name) == 3
    for name in names[1:]:
        assert worker.retrieve(tokens, rig.blocks(worker, 3, first=20), request=name)
    assert rig.server.leases() > 0
    assert worker.retrieve(tokens, rig.blocks(worker, 3, first=20), request=names[0])
    rig.server.assert_no_leases()


def test_several_stores_of_one_request_in_flight(rig: Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens, blocks = rig.tokens(8), rig.blocks(worker, 8)[0]
    futures = [
        worker.begin_store(tokens, [blocks[4 * i : 4 * i + 4]], i * rig.chunk, (i + 1) * rig.chunk)
        for i in range(8)
    ]
    assert all(future.result(60) for future in futures)
    assert scheduler.lookup(tokens) == 8
    scheduler.free(tokens, 0, len(tokens))
