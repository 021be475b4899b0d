"""Sixteen workers at once, all of them mixing stores, loads and lookups: who waits for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.synchronize import Barrier

import numpy as np

from bench.client import CHUNK_TOKENS, SMALL, Pool, Request, Worker
from bench.common import LIMIT
from bench.crowd import run
from bench.figures import Samples

CLIENTS = 16
OPERATIONS = ("store", "load", "lookup", "ping")
_WEIGHTS = (3, 3, 3, 1)
_REMEMBERED = 16  # requests of a worker that it loads again: what all have fits in the L1
_LOOKUP_CHUNKS = 8

Taken = dict[str, list[float]]


def measure(url: str, seconds: int) -> Samples:
    """By operation p50, p99 and the longest, in ms; operations and gigabytes a second of all."""
    results: list[Taken] = run(_client, url, CLIENTS, seconds)
    taken = {name: [x for result in results for x in result[name]] for name in OPERATIONS}
    moved = (len(taken["store"]) + len(taken["load"])) * SMALL.nbytes(CHUNK_TOKENS)
    samples: Samples = {
        "crowd16_rate": [sum(map(len, taken.values())) / seconds],
        "crowd16_moved": [moved / 1e9 / seconds],
    }
    for name, values in taken.items():
        milliseconds = 1e3 * np.array(values)
        samples[f"crowd16_{name}_p50"] = [float(np.percentile(milliseconds, 50))]
        samples[f"crowd16_{name}_p99"] = [float(np.percentile(milliseconds, 99))]
        samples[f"crowd16_{name}_max"] = [float(milliseconds.max())]
    return samples


def _client(url: str, barrier: Barrier, seconds: int) -> Taken:
    with closing(Pool(SMALL)) as pool, closing(Worker(url, pool)) as worker:
        one = _Mixed(worker)
        one.store()
        barrier.wait(LIMIT)
        end = time.monotonic() + seconds
        calls: list[Callable[[], float]] = [one.store, one.load, one.lookup, one.ping]
        taken: Taken = {name: [] for name in OPERATIONS}
        while time.monotonic() < end:
            (which,) = one.random.choices(range(len(OPERATIONS)), _WEIGHTS)
            taken[OPERATIONS[which]].append(calls[which]())
        barrier.wait(LIMIT)
        pool.check_equal(one.source, one.target)
        return taken


class _Mixed:
    """What one worker does. Each call returns the seconds until its answer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.random = random.Random(worker.instance_id)
        ((self.source, self.target),) = worker.pool.block_lists(CHUNK_TOKENS, 1)
        self._stored: list[Request] = []

    def store(self) -> float:
        worker = self._worker
        request = worker.request(worker.pool.tokens(CHUNK_TOKENS))
        seconds = worker.store(request, self.source)
        self._stored = [*self._stored, request][-_REMEMBERED:]
        return seconds

    def load(self) -> float:
        """Of something stored; the lookup before it is not counted."""
        worker, request = self._worker, self.random.choice(self._stored)
        again = worker.request(request.tokens)
        worker.lock(again)
        seconds = worker.retrieve(again, self.target)
        worker.end(again)
        return seconds

    def lookup(self) -> float:
        """Of something stored with a new tail."""
        worker, request = self._worker, self.random.choice(self._stored)
        longer = request.tokens + worker.pool.tokens((_LOOKUP_CHUNKS - 1) * CHUNK_TOKENS)
        again = worker.request(longer)
        seconds, hit = worker.lookup(again)
        worker.free(again, hit)
        return seconds

    def ping(self) -> float:
        start = time.perf_counter()
        self._worker.rpc.ping(None).result(LIMIT)
        return time.perf_counter() - start
