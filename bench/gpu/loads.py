"""Transfers that go on beside a measurement: context managers, each of which gives a step of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch

from bench.client import TIMEOUT, Request, Worker
from bench.common import BenchError
from bench.gpu.background import Step
from bench.gpu.shapes import GpuPool, Shape

_AT_ONCE = 4
_STUCK_CYCLES = 10**12  # minutes on any GPU


@contextmanager
def traffic(
    url: str, shape: Shape, bytes_a_second: float | None = None, device: str = "cuda"
) -> Iterator[Step]:
    """A worker that stores requests and loads them again, one at a time at the given speed.

    Without a speed it has some under way at once, and does not pause.
    """
    count = 1 if bytes_a_second else _AT_ONCE
    with closing(GpuPool(shape, device)) as pool, closing(Worker(url, pool)) as worker:
        ((source, target),) = pool.block_lists(shape.tokens, 1)

        def step() -> None:
            start = time.monotonic()
            requests = [worker.request(pool.tokens(shape.tokens)) for _ in range(count)]
            _exchange(worker, requests, source, target)
            if bytes_a_second:
                due = start + moved(shape, bytes_a_second) / bytes_a_second
                time.sleep(max(0.0, due - time.monotonic()))

        yield step


def moved(shape: Shape, bytes_a_second: float | None) -> int:
    """Bytes of a step of `traffic`, both directions together."""
    return 2 * shape.nbytes * (1 if bytes_a_second else _AT_ONCE)


@contextmanager
def stuck(url: str, shape: Shape) -> Iterator[Step]:
    """A worker whose stores wait for a kernel that does not end."""
    with closing(GpuPool(shape)) as pool, closing(Worker(url, pool)) as worker:
        ((source, _),) = pool.block_lists(shape.tokens, 1)
        torch.cuda._sleep(_STUCK_CYCLES)

        def step() -> None:
            worker.submit("store", worker.request(pool.tokens(shape.tokens)), source)
            time.sleep(0.1)

        yield step


def _exchange(
    worker: Worker, requests: list[Request], source: list[int], target: list[int]
) -> None:
    """Store all of them, then load all of them. Raises BenchError."""
    _finish([worker.submit("store", request, source) for request in requests])
    for request in requests:
        worker.lock(request)
    _finish([worker.submit("retrieve", request, target) for request in requests])
    for request in requests:
        worker.end(request)


def _finish(futures: Iterable[Any]) -> None:
    if not all(future.result(TIMEOUT) for future in futures):
        raise BenchError("the server refused a transfer in the background")
