"""A server that was killed and started again, seen by clients that did not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.rig import Rig, round_trip
from tests.support.server import Server


@pytest.fixture
def rig(new_server: Callable[..., Server]) -> Rig:
    return Rig(new_server().start(), "restart")


def restart(rig: Rig) -> None:
    rig.server.kill()
    rig.server.start()


def test_a_forgotten_worker_is_made_to_register_again(rig: Rig, mode: str) -> None:
    """Its next store is refused, its next ping answered False, the one after that True."""
    worker = rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.ping(worker.instance)
    assert worker.store(tokens, blocks)
    restart(rig)
    answer = worker.store(tokens, blocks)
    if mode == "lmcache_driven":  # the engine mode's negative answer means "nothing to do"
        assert not answer
    assert not worker.ping(worker.instance)
    worker.register()
    assert worker.ping(worker.instance)
    assert rig.scheduler().lookup(tokens) == 0
    round_trip(rig, worker)
    rig.server.assert_no_leases()
    rig.close()


def test_the_ping_is_false_only_once(rig: Rig) -> None:
    """A worker that cannot register at once is not kept out of service."""
    worker = rig.worker()
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    restart(rig)
    assert not worker.store(tokens, blocks)
    assert not worker.ping(worker.instance)
    assert worker.ping(worker.instance)
    rig.close()


def test_who_was_cut_off_is_told_once(rig: Rig) -> None:
    """A scheduler's lookup that was lost in the crash would wait for the client's own timeout."""
    scheduler = rig.scheduler()
    assert scheduler.lookup(rig.tokens(1)) == 0
    assert scheduler.rpc.ping(None).result(timeout=10)
    restart(rig)
    assert [scheduler.rpc.ping(None).result(timeout=10) for _ in range(3)] == [False, True, True]
    rig.close()


def test_schedulers_go_on(rig: Rig) -> None:
    """A scheduler has nothing to register: after the restart its lookups just miss."""
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(2)
    assert worker.store(tokens, rig.blocks(worker, 2))
    assert scheduler.lookup(tokens) == 2
    restart(rig)
    assert scheduler.query(scheduler.last) == 0
    scheduler.free(tokens, 0, len(tokens))
    assert scheduler.lookup(tokens) == 0
    assert [scheduler.ping(None) for _ in range(2)] == [False, True]
    rig.close()


def test_a_retrieve_after_the_restart(rig: Rig, mode: str) -> None:
    worker = rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.store(tokens, blocks)
    assert rig.scheduler().lookup(tokens) == 2
    restart(rig)
    assert not worker.retrieve(tokens, blocks)
    rig.close()
