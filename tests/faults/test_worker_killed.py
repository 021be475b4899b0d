"""Workers killed with SIGKILL in the middle of transfers leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults import victim
from tests.support.raw import ENGINE, RawClient, RawPool, RawWorker, make_key
from tests.support.server import REPO, SHM, Server, shown, wait_until

BOUND = 120.0  # seconds; generous, the server's own limits are a quarter of it
REAP = ("--worker-reap-timeout-seconds", "2", "--worker-registration-grace-seconds", "2")


class Victim:
    """A process running `victim.py`."""

    def __init__(self, server: Server, mode: str, instance: int) -> None:
        self.instance, self.model = instance, f"victim-{mode}"
        arguments = [server.url, mode, str(instance), self.model]
        env = os.environ | {"PYTHONPATH": str(REPO)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", *arguments],
            stdout=subprocess.PIPE, cwd=REPO, env=env,
        )  # fmt: skip

    def wait_under_way(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"under way\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for left in SHM.glob(f"lmcache_kv_{self.process.pid}_*"):
            left.unlink()


@pytest.fixture
def victims(new_server: Callable[..., Server]) -> Iterator[tuple[Server, Victim, Victim]]:
    server = new_server(*REAP).start()
    made = (Victim(server, "lmcache_driven", 51), Victim(server, "engine_driven", 52))
    yield server, *made
    for one in made:
        one.kill()


def test_killed_workers(victims: tuple[Server, Victim, Victim]) -> None:
    """Both modes at once, beside a worker that answers and one that is idle but connected."""
    server, handle, engine = victims
    with RawClient(server.url) as client, RawClient(server.url) as idle_client:
        lively = RawWorker(client, "lively", 61)
        idle = RawWorker(idle_client, "idle", 62)
        lively.register()
        idle.register()
        for one in (handle, engine):
            one.wait_under_way()
        assert server.instances() == shown(51, 52, 61, 62)
        assert server.leases() > 0
        for one in (handle, engine):
            one.kill()

        def gone() -> bool:
            assert client.call("ping", 61) is True, "a worker that answers was given up"
            return server.instances() == shown(61, 62)

        wait_until(gone, "registrations of the dead gone", BOUND)
        server.assert_no_leases(BOUND)
        expect_only_whole_objects(client, handle)
        expect_only_the_committed(client, engine)
        lively.prove(list(range(500, 628)), server.chunk_size)
        idle.prove(list(range(700, 828)), server.chunk_size)
        lively.close()
        idle.close()
    server.assert_no_leases(BOUND)


def expect_only_whole_objects(client: RawClient, dead: Victim) -> None:
    """What the victim had stored is there in full or not at all: every byte is its own."""
    source, heir = victim.pool(), RawWorker(client, dead.model, 71, RawPool(blocks=80))
    heir.register()
    found = 0
    for number in range(60):
        tokens = victim.request_tokens(number)
        key = make_key(tokens, 0, len(tokens), model=dead.model, request=f"heir-{number}")
        chunks = heir.lookup({**key, "worker_id": None})
        if not chunks:
            continue
        found += 1
        ids = victim.BLOCKS[: 4 * chunks]
        heir.pool.data[:] = 0
        assert heir.retrieve({**key, "end": 64 * chunks}, ids)[1] is True
        assert np.array_equal(heir.pool.data[:, ids], source.data[:, ids])
    assert found, "the victim was killed before it had stored anything"
    source.unlink()
    heir.close()


def expect_only_the_committed(client: RawClient, dead: Victim) -> None:
    """Slots that were reserved and never committed stay invisible."""
    fields = {"instance_id": 72, "model_name": dead.model} | ENGINE
    client.call("register_kv_cache_engine_driven_context", fields)
    heir = RawWorker(client, dead.model, 72, RawPool(blocks=1))
    for number in range(20):
        tokens = victim.request_tokens(number)
        key = make_key(
            tokens, 0, len(tokens), model=dead.model, worker=None, request=f"heir-{number}"
        )
        chunks = heir.lookup(key)
        # The first chunks differ in their first token, so nothing is shared between requests.
        assert chunks == (victim.CHUNKS if number == 0 else 0)
        client.call("free_lookup_locks", key, 1)
    again = make_key(victim.request_tokens(5), 0, 64, model=dead.model)
    assert client.call("prepare_store", again, 72)["context"]["chunk_indices"] == [0]
    assert client.call("commit_store", again, 72, b"") is True
    client.call("unregister_kv_cache_engine_driven_context", 72)
    heir.pool.unlink()


def test_a_worker_that_unregisters_in_the_middle(own_server: Server) -> None:
    """Its transfers end first, or are refused; all of them are answered."""
    with RawClient(own_server.url) as client:
        worker = RawWorker(client, "leaving", 81, victim.pool())
        worker.register()
        requests = []
        for number in range(60):
            tokens = victim.request_tokens(number)
            key = make_key(tokens, 0, len(tokens), model="leaving", request=f"r{number}")
            requests.append(client.frames("store", key, 81, [victim.BLOCKS], b""))
        leave = client.frames("unregister_kv_cache", 81)
        for frames in [*requests[:40], leave, *requests[40:]]:
            client.send(frames)
        replies = [client.receive() for _ in range(61)]
        assert {reply[0] for reply in replies} == {f[0] for f in [*requests, leave]}
        worker.pool.unlink()
    own_server.assert_no_leases()


def test_the_segment_of_a_dead_worker_is_unmapped(own_server: Server, tmp_path: Path) -> None:
    """Memory that nobody else has mapped goes back to the system."""
    assert own_server.process is not None
    maps = Path(f"/proc/{own_server.process.pid}/maps")
    with RawClient(own_server.url) as client:
        worker = RawWorker(client, "mapped", 91)
        worker.register()
        assert worker.pool.name in maps.read_text()
        worker.close()
        wait_until(lambda: worker.pool.name not in maps.read_text(), "the segment unmapped")
