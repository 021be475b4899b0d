"""Step 5. The server and its child: what is stored comes back, to the last byte."""

from __future__ import annotations

from tests.gpu.quick.gpu import BATCHES, SMALL, Gpu
from tests.gpu.quick.report import Report
from tests.gpu.quick.site import Blocks, Worker, round_trip, serving
from tests.support.raw import RawClient

_RUNS = (384, 4096, 32 << 10) if SMALL else (384, 1024, 4096, 16 << 10, 32 << 10, 128 << 10)
_CHUNKS, _BLOCKS, _LAYERS = 7, 64, 2


def run(report: Report) -> None:
    gpu = Gpu()
    memories = [Blocks(gpu, run, _BLOCKS, _LAYERS, seed=run) for run in _RUNS]
    for batches in (False, True):
        name = "batches" if batches else "one by one"
        if batches and not BATCHES:
            report.skip("with batches", "no batches are begun")
            continue
        with serving(batches=batches) as server, RawClient(server.url) as client:
            for number, blocks in enumerate(memories):
                worker = Worker(client, blocks, number + 1)
                what = f"runs of {blocks.run} bytes, {name}"
                round_trip(report, worker, what, _CHUNKS, seed=number)
                worker.close()
