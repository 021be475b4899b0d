"""Sixteen workers at once, all of them mixing stores, loads and lookups: who waits for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
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

# In the second phase a worker begins an operation every so often: as much as the peer serves, too,
# so both have the same to do, and the workers do not wait for each other's CPUs.
_PACE_SECONDS = 0.125

Taken = dict[str, list[float]]


def measure(url: str, seconds: int) -> Samples:
    """As much as the server serves, and at a pace: by operation p50, p99 and the longest, in ms;
    operations and gigabytes a second of all."""
    results: list[tuple[Taken, Taken]] = run(_client, url, CLIENTS, seconds)
    free, paced = zip(*results, strict=True)
    return _figures("crowd16", free, seconds) | _figures("paced16", paced, seconds)


def _figures(case: str, results: Sequence[Taken], seconds: int) -> Samples:
    taken = {name: [x for result in results for x in result[name]] for name in OPERATIONS}
    moved = (len(taken["store"]) + len(taken["load"])) * SMALL.nbytes(CHUNK_TOKENS)
    samples: Samples = {
        f"{case}_rate": [sum(map(len, taken.values())) / seconds],
        f"{case}_moved": [moved / 1e9 / seconds],
    }
    for name, values in taken.items():
        milliseconds = 1e3 * np.array(values)
        samples[f"{case}_{name}_p50"] = [float(np.percentile(milliseconds, 50))]
        samples[f"{case}_{name}_p99"] = [float(np.percentile(milliseconds, 99))]
        samples[f"{case}_{name}_max"] = [float(milliseconds.max())]
    return samples


def _client(url: str, barrier: Barrier, seconds: int) -> tuple[Taken, Taken]:
    with closing(Pool(SMALL)) as pool, closing(Worker(url, pool)) as worker:
        one = Mixed(worker)
        one.store()
        phases = []
        for pace in (0.0, _PACE_SECONDS):
            barrier.wait(LIMIT)
            phases.append(phase(one, seconds, pace))
        barrier.wait(LIMIT)
        pool.check_equal(one.source, one.target)
        return phases[0], phases[1]


def phase(one: Mixed, seconds: float, pace: float) -> Taken:
    """Operations by chance, one begun every `pace` seconds; the seconds of each."""
    calls: list[Callable[[], float]] = [one.store, one.load, one.lookup, one.ping]
    taken: Taken = {name: [] for name in OPERATIONS}
    begun = time.monotonic()
    due = begun + one.random.random() * pace
    while time.monotonic() < begun + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        due += pace
        (which,) = one.random.choices(range(len(OPERATIONS)), _WEIGHTS)
        taken[OPERATIONS[which]].append(calls[which]())
    return taken


class Mixed:
    """What one worker does. Each call returns the seconds until its answer."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.random = random.Random(worker.instance_id)
        ((self.source, self.target),) = worker.pool.block_lists(CHUNK_TOKENS, 1)
        self.stored: list[Request] = []

    def store(self) -> float:
        worker = self.worker
        request = worker.request(worker.pool.tokens(CHUNK_TOKENS))
        seconds = worker.store(request, self.source)
        self.stored = [*self.stored, request][-_REMEMBERED:]
        return seconds

    def load(self) -> float:
        """Of something stored; the lookup before it is not counted."""
        worker, request = self.worker, self.random.choice(self.stored)
        again = worker.request(request.tokens)
        if not self.locked(again):
            return 0.0
        seconds = worker.retrieve(again, self.target)
        worker.end(again)
        return seconds

    def locked(self, request: Request) -> bool:
        """It must be a hit."""
        self.worker.lock(request)
        return True

    def lookup(self) -> float:
        """Of something stored with a new tail."""
        worker, request = self.worker, self.random.choice(self.stored)
        longer = request.tokens + worker.pool.tokens((_LOOKUP_CHUNKS - 1) * CHUNK_TOKENS)
        again = worker.request(longer)
        seconds, hit = worker.lookup(again)
        worker.free(again, hit)
        return seconds

    def ping(self) -> float:
        start = time.perf_counter()
        self.worker.rpc.ping(None).result(LIMIT)
        return time.perf_counter() - start
