"""Registrations that name memory which is not the worker's, or shapes that do not fit it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.support.raw import RawClient, RawPool, RawWorker, encode, extension, make_key
from tests.support.server import SHM, Server

TOKENS = list(range(128))
BLOCKS = list(range(1, 9))


@pytest.fixture
def pool() -> Iterator[RawPool]:
    made = RawPool()
    yield made
    made.unlink()


def refused(raw: RawClient, pool: RawPool, caches: Any) -> None:
    """The registration is answered, and the instance cannot store with it."""
    worker = RawWorker(raw, "hostile", 666, pool)
    assert raw.call("register_kv_cache", *worker.registration(caches)) is None
    key = make_key(TOKENS, 0, 128, model="hostile")
    assert worker.store(key, BLOCKS) == [b"", False]
    assert raw.call("unregister_kv_cache", 666) is None


def changed(pool: RawPool, **fields: Any) -> list[msgspec.msgpack.Ext]:
    """The pool's descriptors with top-level or metadata fields replaced."""
    made = []
    for layer in range(pool.LAYERS):
        descriptor = pool.descriptor(layer)
        for name, value in fields.items():
            place = descriptor["metadata"] if name in descriptor["metadata"] else descriptor
            place[name] = value
        made.append(extension(descriptor))
    return made


@pytest.mark.parametrize(
    "name",
    [
        "/../etc/passwd",
        "/../../etc/shadow",
        "/",
        "",
        "//",
        "/.",
        "/..",
        "/dev/shm/lmcache_kv_1_0",
        "/etc/passwd",
        "/lmcache_kv_/../../etc/passwd",
        "/lmcache_kv_1_0/x",
        "/somebody_elses_segment",
        "lmcache_kv_without_slash",
        "/lmcache_kv_no_such_segment",
        "/lmcache_kv_1\x000",
        "/lmcache_kv_" + "x" * 300,
        "/lmcache_kv_\udcff".encode("utf-8", "surrogateescape"),
        7,
        None,
    ],
)
def test_names(raw: RawClient, pool: RawPool, name: Any) -> None:
    refused(raw, pool, changed(pool, shm_name=name))


def test_the_arena_itself(raw: RawClient, pool: RawPool, server: Server) -> None:
    """A worker must not get the cache's own memory as its own."""
    for segment in server.segments():
        refused(raw, pool, changed(pool, shm_name=f"/{segment.name}"))


def test_links_and_other_files(raw: RawClient, pool: RawPool, tmp_path: Path) -> None:
    """The right name, but no segment: a link elsewhere, a directory, a pipe."""
    base = f"lmcache_kv_{os.getpid()}_999"
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(pool.nbytes))
    before = secret.read_bytes()
    (SHM / f"{base}1").symlink_to(secret)
    (SHM / f"{base}2").mkdir()
    os.mkfifo(SHM / f"{base}3")
    try:
        for number in (1, 2, 3):
            refused(raw, pool, changed(pool, shm_name=f"/{base}{number}"))
    finally:
        (SHM / f"{base}1").unlink()
        (SHM / f"{base}2").rmdir()
        (SHM / f"{base}3").unlink()
    assert secret.read_bytes() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [64, 2, 16, -16]},
        {"shape": [2**40, 2, 16, 16]},
        {"shape": [2**62, 2**62, 16, 16]},
        {"shape": [2**63, 1, 1, 1]},
        {"shape": [0, 2, 16, 16]},
        {"shape": []},
        {"shape": [64]},
        {"shape": [1] * 9, "stride": [1] * 9},
        {"shape": [1] * 10_000, "stride": [1] * 10_000},
        {"shape": [65, 2, 16, 16]},
        {"shape": [64, 2, 16]},
        {"shape": "64"},
        {"shape": [64.0, 2, 16, 16]},
        {"stride": [512, 256, 16, 2]},
        {"stride": [-512, 256, 16, 1]},
        {"stride": [0, 256, 16, 1]},
        {"stride": [0, 0, 0, 0]},
        {"stride": [2**62, 256, 16, 1]},
        {"stride": [2**63 - 1] * 4},
        {"stride": [256, 256, 16, 1]},
        {"stride": [512, 256, 16]},
        {"storage_offset": -1},
        {"storage_offset": 2**62},
        {"storage_offset": 2**64 - 1},
        {"storage_offset": 64 * 512 * 2},
        {"nbytes": 0},
        {"nbytes": -1},
        {"nbytes": 2**62},
        {"nbytes": 1 << 30},
        {"dtype": "object"},
        {"dtype": "float999"},
        {"dtype": ""},
        {"dtype": 5},
        {"dtype": "float64"},
        {"version": 2},
        {"version": "1"},
        {"type": "cuda"},
        {"type": "cuda_raw"},
        {"type": "no_such_type"},
        {"type": None},
        {"metadata": None},
        {"metadata": {}},
        {"unknown_field": 1},
        {"device_uuid": None},
    ],
    ids=lambda fields: repr(fields)[:50],
)
def test_shapes(raw: RawClient, pool: RawPool, fields: dict[str, Any]) -> None:
    before = pool.data.copy()
    refused(raw, pool, changed(pool, **fields))
    assert np.array_equal(pool.data, before)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04\x95",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\xc1",
        encode([1, 2, 3]),
        encode("cpu_shm"),
        b"\x91" * 5000,
        b"\xff" * 100_000,
    ],
    ids=repr,
)
def test_bodies_that_are_no_descriptors(raw: RawClient, pool: RawPool, body: bytes) -> None:
    """Pickles among them: refused unread."""
    refused(raw, pool, [msgspec.msgpack.Ext(1, body)] * 2)


@pytest.mark.parametrize("code", [0, 2, 127, -1])
def test_other_extension_codes(raw: RawClient, pool: RawPool, code: int) -> None:
    body = encode(pool.descriptor(0))
    refused(raw, pool, [msgspec.msgpack.Ext(code, body)] * 2)


@pytest.mark.parametrize("caches", [[], None, 5, "x", {}, [1, 2], [[]], [None]], ids=repr)
def test_no_tensors(raw: RawClient, pool: RawPool, caches: Any) -> None:
    worker = RawWorker(raw, "hostile", 666, pool)
    payloads = worker.registration()
    payloads[1] = caches
    assert raw.call("register_kv_cache", *payloads) is None
    assert worker.store(make_key(TOKENS, 0, 128, model="hostile"), BLOCKS) == [b"", False]
    raw.call("unregister_kv_cache", 666)


GROUP = {"engine_group_id": 0, "layer_indices": [0, 1], "recurrent_state": False}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, -1),
        (0, "x"),
        (2, "model@rank"),
        (2, "x" * 1_000_000),
        (3, 0),
        (3, -5),
        (3, 2**63),
        (5, {"kv_layout": "sideways"}),
        (5, {"kv_layout": 3}),
        (5, []),
        (6, [GROUP | {"layer_indices": [0, 99]}]),
        (6, [GROUP | {"layer_indices": [-1]}]),
        (6, [GROUP | {"layer_indices": [0, 0, 0]}]),
        (6, [GROUP | {"layer_indices": []}]),
        (6, [GROUP | {"tokens_per_block": -16}]),
        (6, [GROUP | {"tokens_per_block": 17}]),
        (6, [GROUP | {"tokens_per_block": 2**62}]),
        (6, [GROUP | {"engine_group_id": -1}]),
        (6, [GROUP | {"engine_group_id": 2**40}]),
        (6, [GROUP] * 10_000),
        (6, [7]),
        (6, None),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_other_payloads(raw: RawClient, pool: RawPool, place: int, value: Any) -> None:
    payloads = RawWorker(raw, "hostile", 666, pool).registration()
    payloads[place] = value
    assert raw.call("register_kv_cache", *payloads) is None
    key = make_key(TOKENS, 0, 128, model="hostile")
    store = raw.call("store", key, 666, [BLOCKS], b"")
    assert store == [b"", False]
    raw.call("unregister_kv_cache", 666)


def test_a_bad_repeat_does_not_leave_the_old_mapping_in_use(raw: RawClient, pool: RawPool) -> None:
    """A refused repeat: the worker is answered no until it registers properly."""
    worker = RawWorker(raw, "repeat", 888, pool)
    worker.register()
    worker.prove(TOKENS, 64)
    refused_payloads = worker.registration(changed(pool, shm_name="/etc/passwd"))
    assert raw.call("register_kv_cache", *refused_payloads) is None
    worker.register()
    worker.prove([9, *TOKENS[1:]], 64)
    raw.call("unregister_kv_cache", 888)
