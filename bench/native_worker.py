"""The native door: the copies of a worker, and what the client adds to an engine's steps.

By the connector's own manager and its worker for CPUs, in the order in which vLLM calls them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    ReqContext,
    make_offload_key,
)

from bench.cases import LARGE_TOKENS, Pools
from bench.client import BLOCK_TOKENS, CHUNK_TOKENS, LARGE
from bench.common import BenchError
from bench.figures import MEMCPY, Samples
from bench.native_engine import NOTHING, Engine, running
from connectors.native.cpu_worker import CpuWorker
from connectors.native.geometry import Geometry

BLOCKS = LARGE_TOKENS // BLOCK_TOKENS  # of a request
CHUNKS = LARGE_TOKENS // CHUNK_TOKENS
PAGE = LARGE.nbytes(BLOCK_TOKENS) // LARGE.layers
GEOMETRY = Geometry(CHUNK_TOKENS // BLOCK_TOKENS, LARGE.nbytes(CHUNK_TOKENS), copies=1, rank=0)
STEPS = 500


def measure(url: str, pools: Pools, repeats: int) -> Samples:
    """Requests of 256 MiB in GB/s; an idle engine's step in us.

    The same number of requests unmeasured first: their pages are mapped then.
    """
    gigabytes = LARGE.nbytes(LARGE_TOKENS) / 1e9
    samples: Samples = {"native_store": [], "native_load": [], MEMCPY: [], "native_step": []}
    with _site(url) as site:
        for number in range(repeats):
            site.round_trip(check=number == 0)
        site.clear()
        pools.memcpy()
        for number in range(repeats):
            stored, loaded = site.round_trip(check=number == repeats - 1)
            samples["native_store"].append(gigabytes / stored)
            samples["native_load"].append(gigabytes / loaded)
            samples[MEMCPY].append(gigabytes / pools.memcpy())
        site.clear()
        samples["native_step"] += [1e6 * site.idle_step() for _ in range(repeats)]
    return samples


class _Site:
    """An engine, and its worker with blocks for two requests of LARGE_TOKENS."""

    def __init__(self, engine: Engine, worker: CpuWorker, kv: list[Any]) -> None:
        self._engine, self._manager, self._worker, self._kv = engine, engine.manager, worker, kv
        self._random = np.random.default_rng()

    def round_trip(self, check: bool) -> tuple[float, float]:
        """Seconds of a store of new chunks and of their load, from the plan to its completion."""
        source, target = np.split(self._random.permutation(2 * BLOCKS), 2)
        keys = [make_offload_key(os.urandom(32), 0) for _ in range(CHUNKS)]
        stored = self._store(keys, source.tolist())
        loaded = self._load(keys, target.tolist())
        if check and any((layer[source] != layer[target]).any() for layer in self._kv):
            raise BenchError("the native door loaded other bytes than were stored")
        return stored, loaded

    def clear(self) -> None:
        """What is stored next goes where the first was."""
        self._manager.reset_cache()

    def idle_step(self) -> float:
        """Seconds that a step takes in which the engine wants nothing of us."""
        begun = time.perf_counter()
        for _ in range(STEPS):
            self._manager.has_pending_work()
            self._manager.on_schedule_end(NOTHING)
            self._manager.take_events()
        return (time.perf_counter() - begun) / STEPS

    def _store(self, keys: list[Any], blocks: list[int]) -> float:
        """With slots that are reserved ahead, as they are after a request's lookup."""
        context = self._request(keys)
        self._look_up(context, keys, LookupResult.MISS)
        self._engine.until(lambda: len(self._manager._stores._pool) >= CHUNKS)
        begun = time.perf_counter()
        output = self._manager.prepare_store(keys, context)
        if output is None or output.keys_to_store != keys:
            raise BenchError("the native door has no slots for a store")
        self._copy(self._worker.submit_store, _spec(blocks), output.store_spec)
        self._manager.complete_store(keys, context)
        seconds = time.perf_counter() - begun
        self._manager.on_request_finished(context)
        return seconds

    def _load(self, keys: list[Any], blocks: list[int]) -> float:
        context = self._request(keys)
        self._look_up(context, keys, LookupResult.HIT)
        begun = time.perf_counter()
        spec = self._manager.prepare_load(keys, context)
        self._copy(self._worker.submit_load, spec, _spec(blocks))
        self._manager.complete_load(keys, context)
        seconds = time.perf_counter() - begun
        self._manager.on_request_finished(context)
        return seconds

    def _request(self, keys: list[Any]) -> ReqContext:
        context = self._engine.request(keys)
        self._manager.on_new_request(context)
        return context

    def _look_up(self, context: ReqContext, keys: list[Any], expected: LookupResult) -> None:
        """Until all is known; it must be `expected`, and is tried again where it is not yet."""
        self._engine.until(
            lambda: {self._manager.lookup(key, context) for key in keys} == {expected}
        )

    def _copy(self, submit: Callable[..., bool], *specs: Any) -> None:
        submit(1, *specs)
        self._worker.wait({1})
        if not all(result.success for result in self._worker.get_finished()):
            raise BenchError("a copy of the native door failed")


def _spec(blocks: list[int]) -> GPULoadStoreSpec:
    return GPULoadStoreSpec(blocks, [len(blocks)], [0])


@contextmanager
def _site(url: str) -> Iterator[_Site]:
    """With random bytes in its blocks."""
    kv = [
        torch.randint(-128, 128, (2 * BLOCKS, PAGE), dtype=torch.int8) for _ in range(LARGE.layers)
    ]
    caches = CanonicalKVCaches(
        [CanonicalKVCacheTensor(layer, PAGE) for layer in kv],
        [[CanonicalKVCacheRef(layer, PAGE) for layer in range(LARGE.layers)]],
    )
    with running(url, CHUNK_TOKENS, GEOMETRY.object_bytes) as engine:
        worker = CpuWorker(caches, GEOMETRY, engine.arenas, engine.membership)
        try:
            yield _Site(engine, worker, kv)
        finally:
            worker.shutdown()
