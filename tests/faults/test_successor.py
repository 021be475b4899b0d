"""The L1 outlives its server, however that ends, and nothing wrong comes of it."""

from __future__ import annotations

import json
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.cache.records import PAGE_BYTES, READY, RECORD_BYTES, TABLE_AT
from tests.faults import kills
from tests.support.kept import CHUNKS, KEEP, MODEL, Site, finish, key_of
from tests.support.raw import ENGINE, RawClient
from tests.support.server import SHM, Server, free_port, wait_until

MakeServer = Callable[..., Server]
ENDS = pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])


@pytest.fixture
def kept(new_server: MakeServer) -> Iterator[Server]:
    yield new_server(*KEEP).start()


def digested(server: Server) -> None:
    """All that was stored would survive a crash."""
    wait_until(lambda: not server.status()["kept"]["undigested_objects"], "all has its digest")


def proven(server: Server) -> None:
    wait_until(lambda: not server.status()["kept"]["unproven_objects"], "all is proven")


def checked(server: Server) -> bool:
    return server.request("/cache/check", body={})[0] == 200


@ENDS
def test_a_successor_serves_what_was_stored(kept: Server, end: str) -> None:
    site = Site(kept)
    for number in range(20):
        site.store(number)
    digested(kept)
    site.close()
    finish(kept, end)
    kept.start()
    proven(kept)
    site = Site(kept)
    for number in range(20):
        site.check(number)
    site.store(99)
    site.check(99)
    assert checked(kept)
    site.close()


def test_what_has_changed_is_not_served(kept: Server) -> None:
    """After a crash bytes prove themselves, or they are nobody's."""
    site = Site(kept)
    for number in (1, 2, 3):
        site.store(number)
    digested(kept)
    site.close()
    kept.kill()
    with (SHM / f"lmcache_l1_pool_{kept.shm_name}").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
        at, lost = (memory.find(site.fill(number)[0, 0].tobytes()[:64]) for number in (2, 3))
        assert at >= 0 and lost >= 0
        memory[at] ^= 1
        memory.close()
    with (SHM / f"kv_sidecar_index_{kept.shm_name}").open("r+b") as index:
        record = TABLE_AT + lost // PAGE_BYTES * RECORD_BYTES
        assert os.pread(index.fileno(), 1, record) == bytes([READY])
        os.pwrite(index.fileno(), bytes(RECORD_BYTES), record)
    kept.start()
    proven(kept)
    site = Site(kept)
    site.check(1)
    for number in (2, 3):
        assert site.lookup(number) < CHUNKS
        site.store(number)
        site.check(number)
    site.close()


def prepared(
    client: RawClient, arena: np.ndarray[Any, Any], operation: str, number: int
) -> list[np.ndarray[Any, Any]]:
    """The bytes of the slots that worker 5 is given."""
    context = client.call(operation, key_of(number), 5)["context"]
    return [arena[slot["offset"] : slot["offset"] + slot["length"]] for slot in context["slots"]]


@ENDS
def test_what_a_worker_still_has_in_its_hands_is_left_alone(
    new_server: MakeServer, end: str
) -> None:
    """It goes on writing and reading by its mapping, while the successor fills the L1 anew."""
    server = new_server(*KEEP, l1_size_gb=0.0625).start()
    fields = {"instance_id": 5, "model_name": MODEL} | ENGINE
    client = RawClient(server.url)
    name = client.call("register_kv_cache_engine_driven_context", fields)["shm_name"]
    fd = os.open(SHM / name.lstrip("/"), os.O_RDWR)
    arena = np.frombuffer(mmap.mmap(fd, 64 << 20), np.uint8)
    os.close(fd)

    for slot in prepared(client, arena, "prepare_store", 1):
        slot[:] = 11
    assert client.call("commit_store", key_of(1), 5, b"") is True
    reading = prepared(client, arena, "prepare_retrieve", 1)
    writing = prepared(client, arena, "prepare_store", 2)
    digested(server)
    finish(server, end)
    server.start()
    for slot in writing:
        slot[:] = 22
    with RawClient(server.url) as other:
        other.greet()
        other.call("register_kv_cache_engine_driven_context", fields | {"instance_id": 6})
        for number in range(100, 200):
            other.call("prepare_store", key_of(number), 6)
            assert other.call("commit_store", key_of(number), 6, b"") is True
            other.call("end_session", f"r{number}")
        assert all((slot == 22).all() for slot in writing)
        assert all((slot == 11).all() for slot in reading)
        waiting = server.status()["kept"]["others_bytes"]
        assert waiting >= sum(slot.nbytes for slot in writing)
        assert client.call("commit_store", key_of(2), 5, b"") is False
        assert checked(server)
        del arena, reading, writing, slot
        wait_until(lambda: not server.status()["kept"]["others_bytes"], "they are let go of")
        for number in range(200, 300):
            other.call("prepare_store", key_of(number), 6)
            assert other.call("commit_store", key_of(number), 6, b"") is True
        assert checked(server)
    client.close()


def test_another_layout_begins_empty_and_says_why_and_without_the_option_nothing_stays(
    kept: Server,
) -> None:
    site = Site(kept)
    site.store(1)
    site.close()
    assert kept.terminate() == 0
    kept._flags += ("--chunk-size", "32")
    kept.start()
    assert kept.l1()["total_object_count"] == 0
    assert kept.stderr().count("the L1 starts empty") == 1
    assert "its chunks have another size (64, not 32)" in kept.stderr()
    assert kept.terminate() == 0 and kept.segments()
    kept._flags += ("--l1-keep-seconds", "0")
    kept.start()
    assert kept.terminate() == 0
    assert kept.segments() == []


def directory(path: Path) -> str:
    return json.dumps({"type": "fs", "base_path": str(path)})


def taken_address(server: Server) -> str:
    return f"tcp://127.0.0.1:{server.http_port}"


# What a server is told that cannot start beside another one.
FAILING: dict[str, Callable[[Server, Path], list[str]]] = {
    "port": lambda other, _: ["--port", str(other.port)],
    "client port": lambda other, _: ["--client-ports", f"{other.port}=0.5.2"],
    "admin port": lambda other, _: ["--http-port", str(other.http_port)],
    "metrics port": lambda other, _: ["--prometheus-port", str(other.http_port)],
    "events": lambda other, _: ["--kv-events-endpoint", taken_address(other)],
    "replayed events": lambda other, _: [
        *("--kv-events-endpoint", f"tcp://127.0.0.1:{free_port()}"),
        *("--kv-events-replay-endpoint", taken_address(other)),
    ],
    "lookups": lambda _, path: ["--record-lookups", str(path / "absent" / "file")],
    "L2": lambda _, path: ["--l2-adapter", directory(path / "theirs")],
}


@pytest.mark.parametrize("way", FAILING)
def test_a_start_that_fails_costs_nothing(way: str, new_server: MakeServer, tmp_path: Path) -> None:
    """What was kept is there for the next one."""
    flags = [*KEEP, "--l2-adapter", directory(tmp_path / "ours")]
    kept = new_server(*flags).start()
    site = Site(kept)
    site.store(1)
    site.close()
    assert kept.terminate() == 0
    other = new_server("--l2-adapter", directory(tmp_path / "theirs")).start()
    failing = new_server(*flags, *FAILING[way](other, tmp_path), shm_name=kept.shm_name)
    failing.spawn()
    assert failing.wait() == 1
    kept.start()
    assert kept.l1()["total_object_count"] == CHUNKS
    assert not kept.status()["kept"]["unproven_objects"]


def test_killed_again_and_again_under_load(new_server: MakeServer) -> None:
    """A few rounds of `python -m tests.faults.kills`, which is for many."""
    server = new_server(*KEEP, l1_size_gb=0.0625)
    hits, inherited = kills.run(server, rounds=3, chance=random.Random(4))
    assert hits and inherited
