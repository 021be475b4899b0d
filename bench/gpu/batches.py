"""What a call that begins 4096 copies costs the CPU."""

from __future__ import annotations

import mmap
import time

import numpy as np

from bench.gpu.findings import Finding
from sidecar.engines.cuda.driver import Device, Driver

_COPIES, _COPY_BYTES = 4096, 4096
_CALLS_IN_FLIGHT = 16


def measure(driver: Driver, device: Device, calls: int = 2000) -> list[Finding]:
    """The mean over many calls; the queue of the stream is kept short, for a full one waits."""
    if not device.has_batches:
        return [Finding("batch_call", None, f"the driver is for CUDA {device.driver}")]
    nbytes = _COPIES * _COPY_BYTES
    memory = mmap.mmap(-1, nbytes)
    host = driver.pin(np.frombuffer(memory, np.uint8).ctypes.data, nbytes)
    stream, event, target = driver.new_stream(), driver.new_event(), driver.allocate(nbytes)
    at = np.arange(_COPIES, dtype=np.uint64) * np.uint64(_COPY_BYTES)
    sizes = np.full(_COPIES, _COPY_BYTES, np.uint64)
    seconds = 0.0
    for call in range(calls):
        start = time.perf_counter()
        driver.copy(at + np.uint64(target), at + np.uint64(host), sizes, stream, batched=True)
        seconds += time.perf_counter() - start
        if call % _CALLS_IN_FLIGHT == 0:
            driver.record(event, stream)
            while not driver.is_done(event):
                pass
    return [Finding("batch_call", 1e3 * seconds / calls)]
