"""The cases that one client process runs; each returns samples in the figures' units."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.client import CHUNK_TOKENS, LARGE, TIMEOUT, TINY, Pool, Worker
from bench.common import BenchError
from bench.figures import MEMCPY, Samples

LARGE_TOKENS = 2048
LOOKUPS = {"lookup_2k": 2_048, "lookup_32k": 32_768, "lookup_128k": 131_072}


@dataclass
class Pools:
    """The client's memory, made once and used against both servers in turn."""

    large: Pool = field(default_factory=lambda: Pool(LARGE))
    tiny: Pool = field(default_factory=lambda: Pool(TINY))
    source: np.ndarray = field(
        default_factory=lambda: np.ones(LARGE.nbytes(LARGE_TOKENS), dtype=np.uint8)
    )
    target: np.ndarray = field(
        default_factory=lambda: np.ones(LARGE.nbytes(LARGE_TOKENS), dtype=np.uint8)
    )

    def memcpy(self) -> float:
        """Seconds of one thread's copy of as many bytes as a large request has."""
        start = time.perf_counter()
        np.copyto(self.target, self.source)
        return time.perf_counter() - start

    def close(self) -> None:
        for pool in (self.large, self.tiny):
            pool.close()


def _round_trip(worker: Worker, tokens: int, check: bool) -> tuple[float, float]:
    """Seconds of storing new tokens from random blocks, and of retrieving them into others."""
    ((source, target),) = worker.pool.block_lists(tokens, 1)
    request = worker.request(worker.pool.tokens(tokens))
    stored = worker.store(request, source)
    worker.lock(request)
    retrieved = worker.retrieve(request, target)
    worker.end(request)
    if check:
        worker.pool.check_equal(source, target)
    return stored, retrieved


def _transfers(worker: Worker, store: str, retrieve: str, repeats: int, copy: Pools) -> Samples:
    """Large requests one by one, the same number unmeasured first: their pages are warm then."""
    for i in range(repeats):
        _round_trip(worker, LARGE_TOKENS, check=i == 0)
    worker.clear()
    gigabytes = LARGE.nbytes(LARGE_TOKENS) / 1e9
    samples: Samples = {store: [], retrieve: [], MEMCPY: []}
    copy.memcpy()
    for i in range(repeats):
        stored, retrieved = _round_trip(worker, LARGE_TOKENS, check=i == repeats - 1)
        samples[store].append(gigabytes / stored)
        samples[retrieve].append(gigabytes / retrieved)
        samples[MEMCPY].append(gigabytes / copy.memcpy())
    worker.clear()
    return samples


def handle(url: str, pools: Pools, repeats: int) -> Samples:
    with closing(Worker(url, pools.large)) as worker:
        return _transfers(worker, "store", "retrieve", repeats, pools)


def engine(url: str, pools: Pools, repeats: int) -> Samples:
    with closing(Worker(url, pools.large, "engine_driven")) as worker:
        samples = _transfers(worker, "engine_store", "engine_retrieve", repeats, pools)
        samples.pop(MEMCPY)
        samples.update(_engine_round_trips(worker, 2 * repeats))
        worker.clear()
        return samples


def _engine_round_trips(worker: Worker, repeats: int) -> Samples:
    """The four calls of the engine-driven mode without the copies between them, in ms."""
    samples: Samples = {"prepare_commit_store": [], "prepare_commit_retrieve": []}
    rpc, instance = worker.rpc, worker.instance_id
    for _ in range(repeats):
        request = worker.request(worker.pool.tokens(LARGE_TOKENS))
        key = worker.key(request)
        prepare = _timed(samples, "prepare_store", rpc.prepare_store, key, instance)
        commit = _timed(samples, "commit_store", rpc.commit_store, key, instance, b"")
        samples["prepare_commit_store"].append(prepare + commit)
        worker.lock(request)
        prepare = _timed(samples, "prepare_retrieve", rpc.prepare_retrieve, key, instance)
        commit = _timed(samples, "commit_retrieve", rpc.commit_retrieve, key, instance)
        samples["prepare_commit_retrieve"].append(prepare + commit)
        worker.end(request)
    return samples


def _timed(samples: Samples, name: str, call: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds until the server has answered one call; also added to `samples`."""
    start = time.perf_counter()
    call(*arguments).result(TIMEOUT)
    milliseconds = 1e3 * (time.perf_counter() - start)
    samples.setdefault(name, []).append(milliseconds)
    return milliseconds


def lookup(url: str, pools: Pools, repeats: int) -> Samples:
    """Lookups of a stored prefix whose last chunk is new each time."""
    with closing(Worker(url, pools.tiny)) as worker:
        prefix = store_prefix(worker, max(LOOKUPS.values()))
        samples: Samples = {"ping": []}
        for name, tokens in LOOKUPS.items():
            samples[f"new_{name}"] = [new_lookup(worker, tokens) for _ in range(4 * repeats)]
            new_tail_lookup(worker, prefix, tokens)
            samples[name] = [new_tail_lookup(worker, prefix, tokens) for _ in range(4 * repeats)]
        for _ in range(4 * repeats):
            _timed(samples, "ping", worker.rpc.ping, None)
        worker.clear()
        return samples


def store_prefix(worker: Worker, tokens: int) -> tuple[int, ...]:
    """Stores `tokens` new tokens, proves that they come back, and returns them."""
    ((source, target),) = worker.pool.block_lists(tokens, 1)
    request = worker.request(worker.pool.tokens(tokens))
    worker.store(request, source)
    worker.lock(request)
    worker.retrieve(request, target)
    worker.end(request)
    worker.pool.check_equal(source, target)
    return request.tokens


def new_lookup(worker: Worker, tokens: int) -> float:
    """Milliseconds of looking up a prompt of which nothing is known."""
    seconds, hit = worker.lookup(worker.request(worker.pool.tokens(tokens)))
    if hit:
        raise BenchError(f"a lookup of new tokens found {hit} chunks")
    return 1e3 * seconds


def new_tail_lookup(worker: Worker, prefix: tuple[int, ...], tokens: int) -> float:
    """Milliseconds of looking up `tokens` tokens that all hit but for the last chunk."""
    known = tokens - CHUNK_TOKENS
    request = worker.request(prefix[:known] + worker.pool.tokens(CHUNK_TOKENS))
    seconds, hit = worker.lookup(request)
    if hit != known // CHUNK_TOKENS:
        raise BenchError(f"a lookup found {hit} chunks of {known // CHUNK_TOKENS} stored")
    worker.free(request, hit)
    return 1e3 * seconds
