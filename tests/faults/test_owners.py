"""Only its own connection speaks for a worker, and its slots wait for its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from tests.support.engine_worker import EngineWorker
from tests.support.hop import Hop
from tests.support.raw import NoReply, RawClient, RawPool, RawWorker, make_key
from tests.support.server import REPO, Server, wait_until

BOUND = 120.0
CHUNKS = 8
REAP = ("--worker-reap-timeout-seconds", "2", "--worker-registration-grace-seconds", "2")


@pytest.fixture
def hop(own_server: Server) -> Iterator[Hop]:
    made = Hop(own_server.port)
    yield made
    made.close()


@pytest.fixture
def reaping(new_server: Callable[..., Server]) -> Server:
    return new_server(*REAP, l1_size_gb=0.0625).start()


class Writer:
    """A process that has prepared `CHUNKS` slots, and writes to them when it is told to."""

    def __init__(self, url: str, instance: int) -> None:
        arguments = [url, str(instance), "writer", str(CHUNKS)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.engine_worker", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO,
            env=os.environ | {"PYTHONPATH": str(REPO)},
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdin is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == b"prepared\n"

    def write(self) -> None:
        self.stdin.write(b"\n")
        self.stdin.flush()
        assert self.stdout.readline() == b"written\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


def test_a_stopped_worker_without_its_connection_finishes_writing(reaping: Server) -> None:
    """It has been given up, others have filled the L1 several times over; no byte is wrong."""
    hop = Hop(reaping.port)
    writer = Writer(hop.url, 51)
    try:
        os.kill(writer.process.pid, signal.SIGSTOP)
        hop.close()
        wait_until(lambda: not reaping.status()["workers"], "the stopped worker given up", BOUND)
        with RawClient(reaping.url) as client:
            other = EngineWorker(client, "other", 52)
            for number in range(40):
                assert other.store(number, 4, number)
            os.kill(writer.process.pid, signal.SIGCONT)
            writer.write()
            found = {number: other.load(number, 4) for number in range(40)}
            hits = {number: chunks for number, chunks in found.items() if chunks is not None}
            assert hits and 39 in hits
            for number, chunks in hits.items():
                assert all((chunk == number).all() for chunk in chunks)
            other.unregister()
        reaping.request("/cache/clear", {"tier": "l1", "force": True})
        assert reaping.l1()["memory_used_bytes"] == CHUNKS << 20
        assert "still has the L1 open" in reaping.stderr()
    finally:
        writer.kill()
    wait_until(lambda: not reaping.l1()["memory_used_bytes"], "the dead worker's slots free", BOUND)


def test_a_stranger_frees_no_slots(own_server: Server) -> None:
    """It pings and unregisters under another worker's id; what others store stays theirs."""
    writer = Writer(own_server.url, 61)
    try:
        with RawClient(own_server.url) as stranger:
            assert stranger.call("ping", 61) is True
            for kind in ("unregister_kv_cache", "unregister_kv_cache_engine_driven_context"):
                stranger.call(kind, 61)
            other = EngineWorker(stranger, "writer", 61)
            assert other.prepare(5, 2) == [] and not other.commit(61, CHUNKS)
        with RawClient(own_server.url) as client:
            other = EngineWorker(client, "other", 62)
            assert other.store(1, CHUNKS, 7)
            writer.write()
            chunks = other.load(1, CHUNKS)
            assert chunks is not None and all((chunk == 7).all() for chunk in chunks)
    finally:
        writer.kill()


def test_two_live_workers_under_one_id(own_server: Server) -> None:
    """The second is refused and computes; nothing of it is read or written."""
    with RawClient(own_server.url) as client, RawClient(own_server.url) as other_client:
        first = RawWorker(client, "m", 1, RawPool(seed=1))
        second = RawWorker(other_client, "m", 1, RawPool(seed=2))
        first.register()
        second.register()
        tokens = list(range(128))
        key = make_key(tokens, 0, 128, model="m", request="a")
        assert first.store(key, range(1, 9))[1] is True
        untouched = second.pool.data.copy()
        assert second.lookup({**key, "worker_id": None}) == 2
        assert second.retrieve(key, range(1, 9))[1] is False
        assert np.array_equal(second.pool.data, untouched)
        own = make_key([9, *tokens[1:]], 0, 128, model="m", request="b")
        assert second.store(own, range(1, 9))[1] is False
        assert second.lookup({**own, "worker_id": None}) == 0
        assert [other_client.call("ping", 1) for _ in range(3)] == [True] * 3
        first.prove(list(range(500, 628)), own_server.chunk_size)
        first.close()
        assert [other_client.call("ping", 1) for _ in range(2)] == [False, True]
        second.register()
        second.prove(list(range(700, 828)), own_server.chunk_size)
        second.close()


def test_a_worker_whose_connection_breaks_goes_on_over_the_next(
    own_server: Server, hop: Hop
) -> None:
    """libzmq connects again, under another identity; the client does not register again."""
    with RawClient(hop.url) as client:
        worker = RawWorker(client, "m", 1)
        worker.register()
        hop.cut()
        wait_until(lambda: is_answered(client), "the client connected again")
        worker.prove(list(range(128)), own_server.chunk_size)
        assert client.call("ping", 1) is True
        worker.close()
    assert own_server.metrics().total("lmcache_mp_registrations_total") == 1


def test_a_proxy_that_keeps_the_old_connection_open(own_server: Server, hop: Hop) -> None:
    """The worker is refused over its new one, and computes, until the proxy closes the old one."""
    hop.lingers = True
    with RawClient(hop.url) as client:
        worker = RawWorker(client, "m", 1)
        worker.register()
        hop.cut()
        wait_until(lambda: is_answered(client), "the client connected again")
        key = make_key(list(range(128)), 0, 128, model="m")
        assert worker.store(key, range(1, 9))[1] is False
        assert [client.call("ping", 1) for _ in range(2)] == [True, True]
        hop.lingers = False
        hop.cut()
        wait_until(lambda: is_answered(client), "the client connected once more")
        worker.prove(list(range(128)), own_server.chunk_size)
        worker.close()


def is_answered(client: RawClient) -> bool:
    """What was sent into the broken connection is lost."""
    with suppress(NoReply):
        client.exchange(client.frames("ping", 1), timeout=1)
        return True
    return False
