"""The cases of several client processes that ask the server at the same moments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Barrier
from typing import Any

from bench.cases import new_tail_lookup, store_prefix
from bench.client import CHUNK_TOKENS, SMALL, TINY, Pool, Worker
from bench.common import LIMIT, STOP_LIMIT, BenchError, Span, unlink_segments
from bench.figures import Samples

PASSES = 3
LOOKUP_TOKENS = 2048

# A fork server imports torch and lmcache once; each client process is a cheap fork of it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["bench.crowd"])


def small(url: str, clients: int, repeats: int) -> Samples:
    """4 MiB requests of `clients` processes: GB/s in all, over the wall time of all."""
    passes = zip(*run(_small_client, url, clients, repeats), strict=True)
    gigabytes = clients * repeats * SMALL.nbytes(CHUNK_TOKENS) / 1e9
    samples: Samples = {name: [] for name in ("small", "small_store", "small_retrieve")}
    for spans in passes:
        stores = wall([stored for stored, _ in spans])
        retrieves = wall([retrieved for _, retrieved in spans])
        samples["small"].append(2 * gigabytes / (stores + retrieves))
        samples["small_store"].append(gigabytes / stores)
        samples["small_retrieve"].append(gigabytes / retrieves)
    return {f"{name}_{clients}": values for name, values in samples.items()}


def lookups(url: str, clients: int, repeats: int) -> Samples:
    """2k-token lookups of `clients` processes, each as soon as its last is done; ms of each."""
    times: list[list[float]] = run(_lookup_client, url, clients, 25 * repeats)
    return {f"lookup_{clients}": [value for client in times for value in client]}


def wall(spans: list[Span]) -> float:
    """Seconds from the first beginning to the last end."""
    return max(span.end for span in spans) - min(span.start for span in spans)


def run(
    client: Callable[..., Any],
    url: str,
    clients: int,
    repeats: int,
    context: BaseContext = _PROCESSES,
    limit: float = LIMIT,
) -> list[Any]:
    """Runs `client(url, barrier, repeats)` in as many processes of `context`; their results.

    Raises BenchError where one gives none within `limit` seconds.
    """
    barrier = context.Barrier(clients)
    pipes, processes = [], []
    try:
        for _ in range(clients):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(  # type: ignore[attr-defined]
                target=_child, args=(client, url, barrier, repeats, sending), daemon=True
            )
            process.start()
            sending.close()
            pipes.append(receiving)
            processes.append(process)
        return [_received(pipe, limit) for pipe in pipes]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join(STOP_LIMIT)
            process.kill()
            if process.pid is not None:
                unlink_segments(process.pid)


def _received(pipe: Connection, limit: float) -> Any:
    if not pipe.poll(limit):
        raise BenchError(f"a client process gave no result within {limit:.0f} s")
    try:
        result = pipe.recv()
    except EOFError:
        raise BenchError("a client process died") from None
    if isinstance(result, str):
        raise BenchError(f"a client process failed: {result}")
    return result


def _child(
    client: Callable[..., Any], url: str, barrier: Barrier, repeats: int, sending: Connection
) -> None:
    # Terminated means unwound: the stock client unlinks its shared memory on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sending.send(client(url, barrier, repeats))
    except (KeyboardInterrupt, SystemExit):
        os._exit(130)
    except Exception as error:
        barrier.abort()
        sending.send(f"{type(error).__name__}: {error}")


def _small_client(url: str, barrier: Barrier, repeats: int) -> list[tuple[Span, Span]]:
    """The measured passes; one more before them touches the arena's pages."""
    spans = []
    with closing(Pool(SMALL)) as pool, closing(Worker(url, pool)) as worker:
        for _ in range(1 + PASSES):
            spans.append(_small_pass(worker, barrier, repeats))
            if barrier.wait(LIMIT) == 0:
                worker.clear()
            barrier.wait(LIMIT)
    return spans[1:]


def _small_pass(worker: Worker, barrier: Barrier, repeats: int) -> tuple[Span, Span]:
    pool = worker.pool
    requests = [worker.request(pool.tokens(CHUNK_TOKENS)) for _ in range(repeats)]
    blocks = pool.block_lists(CHUNK_TOKENS, repeats)
    barrier.wait(LIMIT)
    start = time.monotonic()
    for request, (source, _) in zip(requests, blocks, strict=True):
        worker.store(request, source)
    stored = Span(start, time.monotonic())
    for request in requests:
        worker.lock(request)
    barrier.wait(LIMIT)
    start = time.monotonic()
    for request, (_, target) in zip(requests, blocks, strict=True):
        worker.retrieve(request, target)
    retrieved = Span(start, time.monotonic())
    for request in requests:
        worker.end(request)
    pool.check_equal(*blocks[-1])
    return stored, retrieved


def _lookup_client(url: str, barrier: Barrier, repeats: int) -> list[float]:
    with closing(Pool(TINY)) as pool, closing(Worker(url, pool)) as worker:
        prefix = store_prefix(worker, LOOKUP_TOKENS)
        barrier.wait(LIMIT)
        times = [new_tail_lookup(worker, prefix, LOOKUP_TOKENS) for _ in range(repeats)]
        barrier.wait(LIMIT)
    return times
