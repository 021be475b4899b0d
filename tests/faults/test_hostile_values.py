"""Well-formed requests that ask for the impossible, from a registered worker."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.raw import EVENT, RawClient, RawWorker, make_key
from tests.support.server import Server

TOKENS = list(range(128))
BLOCKS = list(range(1, 9))
LIMIT = 2**63

HOSTILE_KEYS: dict[str, dict[str, Any]] = {
    "start negative": {"start": -64},
    "start unaligned": {"start": 1},
    "end unaligned": {"end": 127},
    "end before start": {"start": 128, "end": 64},
    "end beyond the tokens": {"end": 64 * 1000},
    "start huge": {"start": LIMIT - 64, "end": LIMIT - 64},
    "end huge": {"end": 2**64 - 64},
    "no world": {"world_size": 0},
    "negative world": {"world_size": -1},
    "huge world": {"world_size": 2**31},
    "endless world": {"world_size": LIMIT},
    "negative rank": {"worker_id": -1},
    "rank outside": {"worker_id": 1},
    "huge rank": {"worker_id": LIMIT},
    "negative readers": {"num_kv_readers": -1},
    "endless readers": {"num_kv_readers": LIMIT},
    "model with @": {"model_name": "a@b"},
    "model not text": {"model_name": 7},
    "huge model": {"model_name": "x" * 1_000_000},
    "salt too long": {"cache_salt": "s" * 129},
    "salt with @": {"cache_salt": "a@b"},
    "salt with slash": {"cache_salt": "../../etc"},
    "salt with backslash": {"cache_salt": "a\\b"},
    "salt with NUL": {"cache_salt": "a\x00b"},
    "negative token": {"token_ids": [-1] * 128},
    "huge token": {"token_ids": [LIMIT] * 128},
    "token not a number": {"token_ids": ["a"] * 128},
    "tokens no list": {"token_ids": "abc"},
    "tokens nested": {"token_ids": [[1]] * 128},
    "tokens nil": {"token_ids": None},
    "request not text": {"request_id": 7},
    "request huge": {"request_id": "r" * 1_000_000},
}


@pytest.mark.parametrize("name", HOSTILE_KEYS)
def test_hostile_keys(worker: RawWorker, name: str) -> None:
    """Refused everywhere; the worker's memory and the cache stay as they were."""
    raw, good = worker.client, make_key(TOKENS, 0, 128, model=worker.model)
    bad = good | HOSTILE_KEYS[name]
    before = worker.pool.data.copy()
    assert worker.store(bad, BLOCKS) == [b"", False]
    assert worker.retrieve(bad, BLOCKS) == [b"", False]
    assert raw.call("prepare_store", bad, worker.instance)["context"]["slots"] == []
    assert raw.call("commit_store", bad, worker.instance, b"") is False
    assert raw.call("prepare_retrieve", bad, worker.instance)["success"] is False
    assert raw.call("commit_retrieve", bad, worker.instance) is True
    assert raw.call("lookup", {"worker_id": None, **bad}, 1) is None
    assert raw.call("query_prefetch_status", "r") == 0
    assert raw.call("free_lookup_locks", bad, 1) is None
    assert np.array_equal(worker.pool.data, before)
    assert worker.lookup({**good, "worker_id": None}) == 0
    worker.prove(TOKENS, 64)


@pytest.mark.parametrize("field", ["model_name", "world_size", "token_ids", "start", "end"])
def test_keys_that_lack_a_field(worker: RawWorker, field: str) -> None:
    key = make_key(TOKENS, 0, 128, model=worker.model)
    del key[field]
    assert worker.store(key, BLOCKS) == [b"", False]
    assert worker.retrieve(key, BLOCKS) == [b"", False]
    assert worker.client.call("lookup", key, 1) is None


@pytest.mark.parametrize("readers", [10**6, 2**31, LIMIT - 1, 2**64 - 1])
def test_lookups_with_endless_readers(worker: RawWorker, readers: int) -> None:
    """Counted, not looped over: refused, or held that often and freed again."""
    key = make_key(TOKENS, 0, 128, model=worker.model)
    assert worker.store(key, BLOCKS)[1] is True
    many = {**key, "worker_id": None, "num_kv_readers": readers}
    assert worker.lookup(many) in (0, 2)
    assert worker.client.call("free_lookup_locks", many, 1) is None


@pytest.mark.parametrize("world", [2, 1024, 2**16, 2**31])
def test_lookups_with_endless_ranks(worker: RawWorker, world: int) -> None:
    key = make_key(TOKENS, 0, 128, model=worker.model, worker=None, world=world)
    assert worker.lookup(key) == 0
    assert worker.client.call("free_lookup_locks", key, world) is None


@pytest.mark.parametrize(
    "blocks",
    [
        [[-1] * 8],
        [[LIMIT] * 8],
        [[2**64 - 1] * 8],
        [[64, *range(1, 8)]],
        [[1.5] * 8],
        [["1"] * 8],
        [[None] * 8],
        [[[1]] * 8],
        [BLOCKS, BLOCKS],
        [BLOCKS * 100_000],
        [BLOCKS[:-1]],
        [],
        [[]],
        None,
        {"0": BLOCKS},
        [[True] * 8, 5],
    ],
    ids=lambda blocks: repr(blocks)[:40],
)
def test_hostile_blocks(worker: RawWorker, blocks: Any) -> None:
    raw, key = worker.client, make_key(TOKENS, 0, 128, model=worker.model)
    before = worker.pool.data.copy()
    assert raw.call("store", key, worker.instance, blocks, EVENT) == [b"", False]
    assert worker.lookup({**key, "worker_id": None}) == 0
    assert worker.store(key, BLOCKS)[1] is True
    assert raw.call("retrieve", key, worker.instance, blocks, EVENT, 0) == [b"", False]
    assert np.array_equal(worker.pool.data, before)


@pytest.mark.parametrize("instance", [-1, 0, LIMIT - 1, LIMIT, 2**64 - 1])
def test_hostile_instances(raw: RawClient, instance: int) -> None:
    key = make_key(TOKENS, 0, 128, model="nobody")
    assert raw.call("store", key, instance, [BLOCKS], EVENT) == [b"", False]
    assert type(raw.call("ping", instance)) is bool
    assert raw.call("unregister_kv_cache", instance) is None
    assert raw.call("report_block_allocation", instance, "nobody", []) is None


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -math.inf, -1.0, 1e308, 0])
def test_hostile_timeouts(worker: RawWorker, timeout: float) -> None:
    """An unknown id is answered at once; a known one, when it is known."""
    raw = worker.client
    assert raw.call("wait_prefetch_status", "unknown", timeout) == 0
    key = make_key(TOKENS, 0, 128, model=worker.model, worker=None)
    assert raw.call("lookup", key, 1) is None
    assert raw.call("wait_prefetch_status", "r", timeout) == 0


@pytest.mark.parametrize("event", [b"", b"x", b"\x00" * 64, b"\x01" * 81, b"e" * 100_000], ids=len)
def test_any_event_bytes_will_do(worker: RawWorker, event: bytes) -> None:
    """On a CPU there is nothing to wait for."""
    key = make_key(TOKENS, 0, 128, model=worker.model)
    answer = worker.client.call("store", key, worker.instance, [BLOCKS], event)
    assert type(answer[0]) is bytes and type(answer[1]) is bool


def test_pickles_in_commit_store(worker: RawWorker, server: Server) -> None:
    """Refused unread: no file appears, nothing becomes visible."""
    raw = worker.client
    fields = {"instance_id": worker.instance + 5_000_000, "model_name": worker.model}
    fields |= {"world_size": 1, "block_size": 16, "num_layers": 2, "hidden_dim_size": 32}
    fields |= {"dtype_str": "float16", "use_mla": True, "num_physical_slots": 64}
    raw.call("register_kv_cache_engine_driven_context", fields)
    instance = fields["instance_id"]
    key = make_key(TOKENS, 0, 128, model=worker.model)
    witness = server.log.with_suffix(".pickled")
    bomb = b"cos\nsystem\n(S'touch " + str(witness).encode() + b"'\ntR."
    assert raw.call("prepare_store", key, instance)["context"]["chunk_indices"] == [0, 1]
    assert raw.call("commit_store", key, instance, bomb) is False
    assert not witness.exists()
    assert worker.lookup({**key, "worker_id": None}) == 0
    raw.call("unregister_kv_cache_engine_driven_context", instance)


def test_the_survivor(worker: RawWorker, still_serves: Callable[[], None]) -> None:
    worker.prove(TOKENS, 64)
    still_serves()
