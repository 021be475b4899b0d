"""What a child costs, and how soon what has died is forgotten and replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from bench import idle
from bench.client import Worker
from bench.common import BenchError
from bench.gpu.background import Background
from bench.gpu.findings import Finding
from bench.gpu.loads import stuck, traffic
from bench.gpu.shapes import GpuPool, Shape
from bench.servers import Server

_LIMIT = 90.0
_SMALL = Shape("one chunk", 4, 32, 1, request_bytes=4 << 20)
_VICTIM = Shape("a victim's", 64, 32, 16)
_NEAR = 100 << 20  # bytes of GPU memory by which two levels may differ


def measure(server: Server) -> Iterator[Finding]:
    """Of a server of ours that has no worker."""
    _wait_childless(server)
    yield Finding("context", _context_mib(server))
    _wait_childless(server)
    level = _used()
    for key, work in (("dead", traffic), ("stuck", stuck)):
        with Background(work, server.url, _VICTIM) as victim:
            victim.kill()
            yield Finding(key, _until(lambda: _is_forgotten(server, level), "a dead worker's end"))
        _wait_childless(server)
    yield Finding("replaced", _replaced(server))


def _context_mib(server: Server) -> float:
    """What the GPU's memory shrinks by when a worker registers."""
    with closing(GpuPool(_SMALL)) as pool:
        before = _used()
        with closing(Worker(server.url, pool)):
            return (_used() - before) / (1 << 20)


def _replaced(server: Server) -> float:
    """Seconds from the child's death until a worker that registers then has stored."""
    with closing(GpuPool(_SMALL)) as pool, closing(Worker(server.url, pool)) as worker:
        ((source, _),) = pool.block_lists(_SMALL.tokens, 1)
        worker.store(worker.request(pool.tokens(_SMALL.tokens)), source)
        for child in idle.tree(server.process.pid)[1:]:
            os.kill(child, signal.SIGKILL)
        return _until(lambda: _stores(server.url, pool, source), "a store after the child's death")


def _stores(url: str, pool: GpuPool, source: list[int]) -> bool:
    with closing(Worker(url, pool)) as worker:
        try:
            worker.store(worker.request(pool.tokens(_SMALL.tokens)), source)
        except BenchError:
            return False
        return True


def _is_forgotten(server: Server, level: int) -> bool:
    return not server.get("/status")["registered_gpu_ids"] and _used() < level + _NEAR


def _wait_childless(server: Server) -> None:
    _until(lambda: len(idle.tree(server.process.pid)) == 1, "the end of the child")


def _used() -> int:
    """Bytes of the GPU's memory in use by anybody."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def _until(condition: Callable[[], bool], what: str) -> float:
    """Seconds until it is so. Raises BenchError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > _LIMIT:
            raise BenchError(f"not within {_LIMIT:.0f} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - start
