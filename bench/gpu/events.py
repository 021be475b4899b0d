"""How soon another process sees that a worker's event has happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import torch

from bench.gpu.background import PROCESSES
from bench.gpu.findings import Finding
from sidecar.engines.cuda.driver import Driver

_KERNEL_CYCLES = 4_000_000  # some 2 ms: longer than it takes to open an event
_LIMIT = 60.0
# Sends the handles of events and, after each has happened, the time on the monotonic clock.
Producer = Callable[[Connection, int], None]


def produce(pipe: Connection, count: int) -> None:
    """Events behind a kernel; each lives until the process ends, for the other side has it."""
    kept = []
    for _ in range(count):
        event = torch.cuda.Event(interprocess=True)
        torch.cuda._sleep(_KERNEL_CYCLES)
        event.record()
        pipe.send_bytes(event.ipc_handle())
        event.synchronize()
        pipe.send(time.monotonic())
        pipe.recv()
        kept.append(event)


def measure(driver: Driver, count: int = 2000, producer: Producer = produce) -> list[Finding]:
    """Microseconds from when the producer itself sees an event until this process sees it."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=producer, args=(theirs, count), daemon=True)
    process.start()
    theirs.close()
    try:
        times = [_one(driver, ours) for _ in range(count)]
    finally:
        process.kill()
        process.join()
    # The clock may also find this process first.
    seen = 1e6 * np.maximum(0.0, np.array(times))
    return [
        Finding(f"event_p{p}", float(np.percentile(seen, p)), f"{count:,} events") for p in (50, 99)
    ]


def _one(driver: Driver, pipe: Connection) -> float:
    if not pipe.poll(_LIMIT):
        raise TimeoutError("no event came from the other process")
    event = driver.open_event(pipe.recv_bytes())
    deadline = time.monotonic() + _LIMIT
    while not driver.is_done(event):
        if time.monotonic() > deadline:
            raise TimeoutError("an event of the other process did not happen")
    seen = time.monotonic()
    driver.destroy_event(event)
    happened: float = pipe.recv()
    pipe.send(None)
    return seen - happened
