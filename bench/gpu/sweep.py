"""Which way is faster for runs of which length: one by one in batches, or staged.

Both ways are those of the server's child, over the real driver. SHORT_BYTES of
`sidecar.engines.cuda.plan` should lie where the two lines cross. Published for batches from host to
device on an H100 with PCIe 5 (vLLM PR#42212): 7 GB/s for 10,000 runs of 16 KiB, 27 at 28 KiB,
39 at 64 KiB.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda.calibration import Calibration, every_other
from sidecar.engines.cuda.driver import Driver
from sidecar.engines.cuda.lane import Lane, Transfer
from sidecar.engines.cuda.pinning import PinnedArena
from sidecar.engines.cuda.plan import Runs, steps_of

RUNS_KIB = (4, 8, 16, 24, 28, 32, 64, 128)
COUNTS = (16, 64, 256, 1024, 4096, 10_000, 50_000)
MAX_BYTES = 7 << 30  # 50,000 runs of 128 KiB


def sweep(driver: Driver, max_bytes: int = MAX_BYTES) -> Iterator[dict[str, Any]]:
    """The whole table; `driver` is opened."""
    driver.open("true")
    yield from sweep_of(driver, RUNS_KIB, COUNTS, max_bytes)


def sweep_of(
    driver: Driver, runs_kib: Sequence[int], counts: Sequence[int], max_bytes: int
) -> Iterator[dict[str, Any]]:
    """Rows: run in KiB, number of runs, direction, GB/s of both ways; before them the pinning.

    `driver` is open. Of each row at most `max_bytes`.
    """
    memory = mmap.mmap(-1, max_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    arena = PinnedArena(driver, address, max_bytes)
    yield _pinning(arena, memory)
    device = driver.allocate(2 * max_bytes)
    lanes = {"store": Lane(driver, arena, True), "load": Lane(driver, arena, False)}
    for kib in runs_kib:
        for count in counts:
            if kib * 1024 * count > max_bytes:
                continue
            runs = every_other(device, kib * 1024, count)
            for direction, lane in lanes.items():
                ways = {"batches": 0, "staged": kib * 1024 + 1}
                rates = {name: rate(lane, runs, short) for name, short in ways.items()}
                yield {"run_kib": kib, "runs": count, "direction": direction, **rates}


def calibrated(driver: Driver) -> Iterator[dict[str, Any]]:
    """Where the server's child finds that the two ways cross, in KiB, by direction."""
    calibration = Calibration(driver)
    while calibration.advance():
        pass
    for is_store, nbytes in calibration.short_bytes.items():
        yield {"staged_under_kib": nbytes >> 10, "calibrated": "store" if is_store else "load"}


def rate(lane: Lane, runs: Runs, short_bytes: int, seconds: float = 0.2) -> float:
    """GB/s of one transfer after another, for at least `seconds`."""
    _transfer(lane, runs, short_bytes)
    start, moved = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        _transfer(lane, runs, short_bytes)
        moved += int(runs.size.sum())
    return moved / (time.perf_counter() - start) / 1e9


def _transfer(lane: Lane, runs: Runs, short_bytes: int) -> None:
    lane.add(Transfer(0, 0, 0.0, iter(steps_of(runs, short_bytes))))
    while not lane.is_idle:
        for ended in lane.advance():
            if ended.error is not None:
                raise RuntimeError(ended.error)


def _pinning(arena: PinnedArena, memory: mmap.mmap) -> dict[str, Any]:
    """Milliseconds to pin one piece of resident memory; expected at most 15."""
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    pieces = np.arange(0, len(memory), PIECE_BYTES)
    start = time.perf_counter()
    arena.need(pieces)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(pieces)
    return {"pin_ms_a_piece": milliseconds, "piece_mib": PIECE_BYTES >> 20}
