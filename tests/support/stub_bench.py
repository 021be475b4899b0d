"""What bench.gpu measures of the driver alone, over the driver that is there, in small.

`python -m tests.support.stub_bench` prints JSON: a line for each finding and row of the sweep.
"""

from __future__ import annotations

import json
import time
from multiprocessing.connection import Connection

from bench.gpu import batches, events, pinning, plain
from bench.gpu.findings import as_json
from bench.gpu.sweep import sweep
from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda.libcuda import LibCuda
from tests.support.gpu_worker import Event

_BYTES = 2 * PIECE_BYTES + 4096


def produce(pipe: Connection, count: int) -> None:
    """Events of the stub, each of which happens once the other side looks at it."""
    for _ in range(count):
        event = Event()
        pipe.send_bytes(event.handle)
        time.sleep(0.002)
        happened = time.monotonic()
        event.signal()
        pipe.send(happened)
        pipe.recv()
        event.unlink()


def main() -> None:
    driver = LibCuda()
    device = driver.open("true")
    found = plain.measure(driver, device, 1 << 20)
    found += batches.measure(driver, device, calls=3)
    found += events.measure(driver, 5, produce)
    for finding in found:
        print(json.dumps(as_json(finding)))
    print(json.dumps({"pieces": len(pinning.pin(driver, pinning.tmpfs(_BYTES)))}))
    for row in sweep(LibCuda(), 1 << 16):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
