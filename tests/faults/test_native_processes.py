"""A scheduler that is killed while a worker of its engine is held in the middle of a copy."""

from __future__ import annotations

import signal
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

from tests.support.native import MISS, OBJECT_BYTES, Engine, engines
from tests.support.native_process import CHUNKS, PAGE, Child, content, name_of
from tests.support.server import Server, wait_until

OBJECTS = 48  # in the L1


def test_what_a_held_worker_writes_to_is_nobody_elses(new_server: Callable[..., Server]) -> None:
    """And nothing of it is ever found. The slots are free once the worker's process is gone."""
    assert PAGE == OBJECT_BYTES
    server = new_server(l1_size_gb=OBJECTS * OBJECT_BYTES / 2**30).start()
    scheduler, worker = (Child(role, server.url, "an engine") for role in ("scheduler", "worker"))
    try:
        plan = scheduler.hear()
        worker.tell(**plan)
        worker.wait_stopped()
        with engines(server.url, identity=bytes(32)) as (other,):
            assert sum(copied(other, plan["slots"])) == 1
            scheduler.kill()
            # What it had would be free now, if that were for its end to say.
            successor = Engine(server.url, engine="an engine", identity=bytes(32))
            wait_until(lambda: successor.attach()["session"], "its place is taken")
            wait_until_looked(server)
            assert not fill(other, 0) & set(plan["slots"])
            assert found(other) == [MISS] * CHUNKS

            worker.process.send_signal(signal.SIGCONT)
            assert worker.hear() == {"success": True}
            assert all(copied(other, plan["slots"]))
            assert not fill(other, 1000) & set(plan["slots"])
            assert found(other) == [MISS] * CHUNKS

            worker.kill()
            successor.end_processes()
            wait_until(lambda: sessions(server) == [other.session], "the engine is gone")
            assert fill(other, 2000) >= set(plan["slots"])
            assert found(other) == [MISS] * CHUNKS
        assert server.request("/cache/check", {})[0] == 200
    finally:
        scheduler.kill()
        worker.kill()


def copied(engine: Engine, slots: list[int]) -> list[bool]:
    """Whether each chunk's bytes are in its slot."""
    return [
        bool((engine.bytes_at(slot) == content(chunk).view(np.uint8)).all())
        for chunk, slot in enumerate(slots)
    ]


def wait_until_looked(server: Server) -> None:
    """Until the server has looked once more for engines that are gone."""
    passing = Engine(server.url)
    passing.attach()
    passing.call("detach")
    wait_until(lambda: passing.session not in sessions(server), "the server has looked")
    passing.end_processes()


def sessions(server: Server) -> list[int]:
    return [engine["session"] for engine in server.status()["engines"]]


def fill(engine: Engine, first: int) -> set[int]:
    """Store more than the L1 holds, from object `first` on, and check all of it; which slots."""
    slots = set()
    for number in range(first, first + 3 * OBJECTS):
        assert engine.store("fill", number) == 1
        slots.update(engine.find("check", number))
        engine.finish("check")
    return slots


def found(engine: Engine) -> list[int]:
    """Of what the killed engine was storing."""
    names = [name_of(chunk) for chunk in range(CHUNKS)]
    group = {"group": 0, "hashes": names, "windowed": True, "load": True}
    slots: list[int]
    [slots] = engine.call("lookup", request="theirs", budget_ms=0, groups=[group])
    engine.finish("theirs")
    return slots
