"""What goes on beside a measurement: inference as it loads a GPU, and transfers.

Each is made by a context manager that gives a step of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch

from bench.client import TIMEOUT, BenchError, Request, Worker
from bench.gpu.background import Step
from bench.gpu.shapes import GpuPool, Shape

_SEQUENCES = 16
_AT_ONCE = 4
_STUCK_CYCLES = 10**12  # minutes on any GPU


@contextmanager
def decode(device: str = "cuda", layers: int = 32, width: int = 4096) -> Iterator[Step]:
    """A token of 16 sequences: bound by reading 3 GB of weights, in kernels of some 40 us."""
    scale = width**-0.5
    weights = [_random(width, 3 * width, device) * scale for _ in range(layers)]
    first = _random(_SEQUENCES, width, device)

    def step() -> None:
        hidden = first
        for weight in weights:
            hidden = (hidden @ weight)[:, :width]
        _wait(device)

    yield step


@contextmanager
def prefill(device: str = "cuda", products: int = 8, width: int = 8192) -> Iterator[Step]:
    """Some 10 ms of matrix products that fill the GPU."""
    left, right = _random(width, width, device), _random(width, width, device)
    out = torch.empty_like(left)

    def step() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)
        _wait(device)

    yield step


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


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
