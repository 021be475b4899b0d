"""Our client of the native door against our server: both halves of an engine, without vLLM's.

The order of the calls is vLLM's; the worker's tensors are small. Real engines: `tests/e2e`.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from tests.support.kept import KEEP, finish
from tests.support.l2 import clear_l1, fs_flags, wait_written
from tests.support.native import block_hash
from tests.support.native_client import (
    CHUNKS,
    FOUND,
    GEOMETRY,
    HIT,
    NEW,
    Engine,
    engine_at,
    is_ready,
)
from tests.support.raw import RawClient
from tests.support.server import Server, wait_until
from tests.support.small_shm import with_small_shm


def pins(server: Server) -> int:
    return int(server.status()["storage_manager"]["l1_manager"]["read_locked_count"])


def test_what_one_engine_stored_the_next_one_loads(own_server: Server) -> None:
    identity = secrets.token_bytes(32)
    with engine_at(own_server, identity) as first:
        assert first.find() == NEW
        first.store()
        stored = first.kv[:CHUNKS].copy()
    with engine_at(own_server, identity, seed=2) as second:
        second.load()
        assert (second.kv[CHUNKS:] == stored).all()
        assert (second.kv[:CHUNKS] != stored).any()
        wait_until(lambda: pins(own_server) == 0, "nothing is pinned")
    with engine_at(own_server, secrets.token_bytes(32)) as other:
        assert other.find() == NEW


def test_what_was_said_to_an_earlier_connection_is_given_back(own_server: Server) -> None:
    """Slots and pins of which the scheduler has not heard; it goes on with its own."""
    with engine_at(own_server, bytes(32)) as engine, RawClient(own_server.url) as earlier:
        engine.store()
        assert engine.find() == FOUND
        session = engine.manager._session.number
        assert earlier.call("native_attach", asdict(engine.attach))["session"] == session
        assert len(earlier.call("native_reserve", {"session": session, "count": 5})) == 5
        group = {"group": 0, "hashes": [block_hash(0)], "windowed": False, "load": False}
        ask = {"session": session, "request": "lost", "budget_ms": 0, "groups": [group]}
        assert earlier.call("native_lookup", ask)[0][0] >= 0

        wait_until(lambda: engine.find() == FOUND, "it has attached again")

        assert engine.manager._session.number == session
        wait_until(lambda: holds_its_pool(engine, own_server), "all else is given back")


def holds_its_pool(engine: Engine, server: Server) -> bool:
    engine.end_step()
    [told] = server.status()["engines"]
    ahead = len(engine.manager._stores._pool) * GEOMETRY.object_bytes
    return told["reserved_bytes"] == ahead > 0 and told["pinned_bytes"] == 0


def test_a_sidecar_that_comes_and_goes(own_server: Server) -> None:
    with engine_at(own_server, bytes(32)) as engine:
        engine.store()
        own_server.kill()
        assert engine.find() == NEW
        own_server.start()
        wait_until(lambda: is_ready(engine, own_server), "it is back")
        assert engine.find() == NEW
        engine.store()
        engine.load()
        assert (engine.kv[CHUNKS:] == engine.kv[:CHUNKS]).all()


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_a_sidecar_that_keeps_its_l1(new_server: Callable[..., Server], end: str) -> None:
    """The worker maps it again, and loads what it stored before. Its earlier mapping ends then."""
    server = new_server(*KEEP).start()
    with engine_at(server, bytes(32)) as engine:
        engine.store()
        wait_until(lambda: not server.status()["kept"]["undigested_objects"], "it has digests")
        finish(server, end)
        assert engine.find() == NEW
        server.start()
        assert server.status()["kept"]["others_bytes"], "slots that it had reserved"
        wait_until(lambda: is_ready(engine, server), "it is back")
        wait_until(lambda: engine.find() == FOUND, "what was stored is found again")
        engine.load()
        assert (engine.kv[CHUNKS:] == engine.kv[:CHUNKS]).all()
        wait_until(lambda: not server.status()["kept"]["others_bytes"], "it has let go")
        assert server.request("/cache/check", {})[0] == 200


@pytest.mark.parametrize("keep", [KEEP, ()], ids=["kept", "not kept"])
def test_a_sidecar_that_starts_empty_beside_a_worker_that_maps_the_earlier_l1(
    new_server: Callable[..., Server], keep: tuple[str, ...]
) -> None:
    """There is no room for both: the L1 grows once the worker has copied with the new one."""

    def test() -> None:
        server = new_server(*keep, l1_size_gb=192 / 1024).start()
        wait_until(lambda: populated(server) == 192, "all of it is there")
        with engine_at(server, bytes(32)) as engine:
            engine.store()
            assert server.terminate() == 0
            server._flags += ("--chunk-size", "32")
            server.start()
            wait_until(lambda: is_ready(engine, server), "it is back")
            assert populated(server) == 64
            assert engine.find() == NEW
            engine.store()
            wait_until(lambda: populated(server) == 192, "all of it is there again")
            engine.load()
            assert (engine.kv[CHUNKS:] == engine.kv[:CHUNKS]).all()
        server.stop()

    with_small_shm("280m", test)


def populated(server: Server) -> int:
    """MiB."""
    return int(server.l1()["memory_populated_bytes"]) >> 20


def test_a_sidecar_that_stands_still(own_server: Server) -> None:
    with engine_at(own_server, bytes(32)) as engine:
        engine.store()
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        try:
            assert engine.find() == NEW
        finally:
            own_server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: engine.find() == FOUND, "it answers again")
        wait_until(lambda: pins(own_server) == 0, "nothing is pinned")


def test_what_l2_has_comes_with_the_lookup(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(*fs_flags(tmp_path)).start()
    with engine_at(server, bytes(32)) as engine:
        engine.store(group=0)
        engine.store(group=1)
        # The engine does not wait for that: before, there may be nothing to write yet.
        wait_until(lambda: server.l1()["total_object_count"] == 2 * CHUNKS, "all is published")
        wait_written(server)
        clear_l1(server)
        engine.load()
        assert (engine.kv[CHUNKS:] == engine.kv[:CHUNKS]).all()

        clear_l1(server)
        context, keys = engine.request(group=1)
        # A window is asked for from its end, and loaded once it is known what it needs.
        assert engine.look_up(context, keys[:2:-1]) == [HIT] * 3
        assert [engine.manager.get_load_source(key, context).value for key in keys[3:]] == [
            "disk"
        ] * 3
        engine.manager.on_request_finished(context)
        wait_until(lambda: pins(server) == 0, "nothing is pinned")


def test_a_reset_forgets_all(own_server: Server) -> None:
    with engine_at(own_server, bytes(32)) as engine:
        engine.store()
        engine.manager.reset_cache()
        wait_until(lambda: engine.find() == NEW, "all is forgotten")
        engine.store()
        engine.load()
