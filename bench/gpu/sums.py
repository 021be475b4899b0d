"""How fast objects are summed up for their checksums: one alone, and some beside each other.

What is read from files into GPU memory waits for this before it goes to a worker's blocks, so it
should be faster than the storage.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from sidecar.engines.cuda.driver import Driver

OBJECT_BYTES = 32 << 20
COUNTS = (1, 4, 16)


def sums(driver: Driver, nbytes: int = OBJECT_BYTES) -> Iterator[dict[str, Any]]:
    """Rows: objects summed up at once, MiB of each, GB/s of all. `driver` is open."""
    stream, device = driver.new_stream(), driver.allocate(max(COUNTS) * nbytes)
    for count in COUNTS:
        table = _table(driver, stream, device, count, nbytes)
        rate = _rate(driver, stream, table, count, nbytes)
        yield {"summed_up": count, "object_mib": nbytes >> 20, "rate": rate}


def _table(driver: Driver, stream: int, device: int, count: int, nbytes: int) -> int:
    """A table of neighbouring objects, in device memory."""
    rows = np.array([*range(device, device + count * nbytes, nbytes), *[nbytes] * count], np.uint64)
    held, place = driver.allocate_host(rows.nbytes), driver.allocate(80 * count)
    ctypes.memmove(held, rows.ctypes.data, rows.nbytes)
    driver.copy(*(np.array([n], np.uint64) for n in (place, held, rows.nbytes)), stream, False)
    return place


def _rate(
    driver: Driver, stream: int, table: int, count: int, nbytes: int, seconds: float = 0.2
) -> float:
    """GB/s of one kernel after another, for at least `seconds`."""
    _sum(driver, stream, table, count)
    start, summed = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        _sum(driver, stream, table, count)
        summed += count * nbytes
    return summed / (time.perf_counter() - start) / 1e9


def _sum(driver: Driver, stream: int, table: int, count: int) -> None:
    event = driver.new_event()
    driver.sum_objects(table, count, stream)
    driver.record(event, stream)
    while not driver.is_done(event):
        pass
    driver.destroy_event(event)
