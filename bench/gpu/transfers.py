"""Workers that store and load whole requests, alone or several at once."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from multiprocessing.synchronize import Barrier

from bench.client import TIMEOUT, Request, Worker
from bench.common import LIMIT, BenchError, Span
from bench.crowd import run, wall
from bench.gpu.background import PROCESSES
from bench.gpu.plain import Rates
from bench.gpu.shapes import GpuPool, Shape

Phases = dict[str, Span]


def rates(url: str, shape: Shape, clients: int, repeats: int, device: str = "cuda") -> Rates:
    """GB/s of all clients together, by phase: store, load and, if they are several, both."""
    client = partial(_client, shape, device)
    each: list[Phases] = run(client, url, clients, repeats, PROCESSES)
    gigabytes = clients * repeats * shape.nbytes / 1e9
    return {phase: gigabytes / wall([spans[phase] for spans in each]) for phase in each[0]}


def _client(shape: Shape, device: str, url: str, barrier: Barrier, repeats: int) -> Phases:
    """One worker process. Everything runs once unmeasured: pages, pinning and mappings."""
    with closing(GpuPool(shape, device)) as pool, closing(Worker(url, pool)) as worker:
        for _ in range(2):
            spans = _phases(worker, shape, barrier, repeats)
            if barrier.wait(LIMIT) == 0:
                worker.clear()
            barrier.wait(LIMIT)
    return spans


def _phases(worker: Worker, shape: Shape, barrier: Barrier, repeats: int) -> Phases:
    pool = worker.pool
    ((source, target),) = pool.block_lists(shape.tokens, 1)

    def new_requests() -> list[Request]:
        return [worker.request(pool.tokens(shape.tokens)) for _ in range(repeats)]

    def phase(requests: list[Request], store: bool) -> Span:
        for request in () if store else requests:
            worker.lock(request)
        barrier.wait(LIMIT)
        start = time.monotonic()
        what, blocks = ("store", source) if store else ("retrieve", target)
        # As vLLM's connector does: it sends all of a step and asks later.
        futures = [worker.submit(what, request, blocks) for request in requests]
        if not all(future.result(TIMEOUT) for future in futures):
            raise BenchError(f"the server refused to {what}")
        return Span(start, time.monotonic())

    stored = new_requests()
    spans = {"store": phase(stored, store=True), "load": phase(stored, store=False)}
    pool.check_equal(source, target)
    if barrier.parties > 1:
        stores = barrier.wait(LIMIT) % 2 == 0
        spans["both"] = phase(new_requests() if stores else stored, stores)
    return spans
