"""Stores until they are in L2, and loads of what only L2 has."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench import disk
from bench.cases import LARGE_TOKENS, Pools
from bench.client import Request, Worker
from bench.common import BenchError
from bench.figures import Samples
from bench.l2.setting import OBJECT_GB, OBJECTS, Plan, counter, directory, running, wait_for
from bench.servers import Server

# A scheduler asks once a step whether a lookup is done.
ASK_PAUSE = 1e-3
# What waits to be written is at most half of our L1: more would be dropped.
GROUP = 5


def transfers(name: str, kind: str, plan: Plan, pools: Pools, logs: Path) -> Samples:
    """Requests stored in groups, then each looked up when only L2 has it."""
    with directory(plan) as base, running(name, kind, base, plan.l1_gb, logs) as server:
        samples = disk.fio(base)
        with closing(Worker(server.url, pools.large)) as worker:
            blocks = worker.pool.block_lists(LARGE_TOKENS, GROUP * plan.groups)
            requests = [worker.request(worker.pool.tokens(LARGE_TOKENS)) for _ in blocks]
            sources = [source for source, _ in blocks]
            count = counter(server, kind, base)
            samples |= _stores(server, worker, kind, count, requests, sources)
            server.clear_l1()
            disk.forget_pages(base)
            samples |= _loads(server, worker, f"l2_{kind}", requests)
            _check(worker, requests[-1], *blocks[-1])
            server.clear_l1()
            again = _loads(server, worker, "again", requests)
            samples[f"l2_{kind}_load_again"] = again["again_load"]
            server.clear_l1()
    return samples


def _stores(
    server: Server,
    worker: Worker,
    kind: str,
    count: Callable[[], int],
    requests: list[Request],
    sources: list[list[int]],
) -> Samples:
    """What is not in L2 when the last store is answered, over the time until it is.

    That holds the pause which ours waits for, so also the rate between the first object
    and the last one.
    """
    samples: Samples = {f"l2_{kind}_{key}": [] for key in ("store", "store_steady", "store_cpu")}
    for at in range(0, len(requests), GROUP):
        wanted = (at + GROUP) * OBJECTS
        group = requests[at : at + GROUP]
        for request, source in zip(group, sources[at:], strict=False):
            worker.store(request, source)
        start, cpu, there = time.perf_counter(), server.cpu_seconds(), count()
        first = wait_for(count, there + 1) if there < wanted else wanted
        begun = time.perf_counter()
        wait_for(count, wanted)
        end = time.perf_counter()
        if left := (wanted - there) * OBJECT_GB:
            samples[f"l2_{kind}_store"].append(left / (end - start))
            samples[f"l2_{kind}_store_cpu"].append((server.cpu_seconds() - cpu) / left)
        if first < wanted:
            steady = (wanted - first) * OBJECT_GB / (end - begun)
            samples[f"l2_{kind}_store_steady"].append(steady)
        for request in group:
            worker.end(request)
    return samples


def _loads(server: Server, worker: Worker, name: str, requests: list[Request]) -> Samples:
    """One request after the other, from its lookup until its hit is known."""
    samples: Samples = {f"{name}_load": [], f"{name}_ready": []}
    cpu = server.cpu_seconds()
    for request in requests:
        seconds, hit = worker.lookup(request, ASK_PAUSE)
        if hit != OBJECTS:
            raise BenchError(f"{hit} of {OBJECTS} chunks came back from L2")
        samples[f"{name}_load"].append(OBJECTS * OBJECT_GB / seconds)
        samples[f"{name}_ready"].append(1e3 * seconds)
        worker.free(request, hit)
    used = server.cpu_seconds() - cpu
    samples[f"{name}_load_cpu"] = [used / (len(requests) * OBJECTS * OBJECT_GB)]
    return samples


def _check(worker: Worker, request: Request, source: list[int], target: list[int]) -> None:
    worker.lock(request)
    worker.retrieve(request, target)
    worker.end(request)
    worker.pool.check_equal(source, target)
