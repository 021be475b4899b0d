"""Very many small objects: how long others wait while they are stored, and what one costs."""

from __future__ import annotations

import time
from contextlib import closing
from multiprocessing.synchronize import Barrier

import numpy as np

from bench.client import CHUNK_TOKENS, POINT, Pool, Worker
from bench.common import LIMIT
from bench.crowd import run
from bench.figures import Samples
from bench.idle import memory_beside_l1
from bench.servers import Server

_TOKENS = 131_072
_PING_SECONDS = 0.002


def measure(server: Server, objects: int) -> Samples:
    """One client stores prompts of 128k new tokens until there are so many; another one pings."""
    before = memory_beside_l1(server.process.pid)
    results: list[Samples] = run(_client, server.url, 2, objects)
    after = memory_beside_l1(server.process.pid)
    taken = {name: values for result in results for name, values in result.items()}
    pings, stores = np.array(taken["pings"]), np.array(taken["stores"])
    return {
        "many_ping_p99": [float(np.percentile(pings, 99))],
        "many_ping_max": [float(pings.max())],
        "many_store_max": [float(stores.max())],
        "many_bytes": [(after - before) / (len(stores) * _TOKENS / CHUNK_TOKENS)],
    }


def _client(url: str, barrier: Barrier, objects: int) -> Samples:
    """Milliseconds of each call."""
    with closing(Pool(POINT)) as pool, closing(Worker(url, pool)) as worker:
        stores = barrier.wait(LIMIT) == 0
        result = _store(worker, objects) if stores else _ping(worker, barrier)
        barrier.wait(LIMIT)
        return result


def _store(worker: Worker, objects: int) -> Samples:
    ((source, _),) = worker.pool.block_lists(_TOKENS, 1)
    taken = []
    for _ in range(-(-objects * CHUNK_TOKENS // _TOKENS)):
        request = worker.request(worker.pool.tokens(_TOKENS))
        taken.append(1e3 * worker.store(request, source))
        worker.end(request)
    return {"stores": taken}


def _ping(worker: Worker, barrier: Barrier) -> Samples:
    """Until the other client waits for this one."""
    taken = []
    while not barrier.n_waiting:
        start = time.perf_counter()
        worker.rpc.ping(None).result(LIMIT)
        taken.append(1e3 * (time.perf_counter() - start))
        time.sleep(_PING_SECONDS)
    return {"pings": taken}
