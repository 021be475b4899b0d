"""Step 6. Nothing is read before it is written, and nothing written before it has been read."""

from __future__ import annotations

import time

import numpy as np

from tests.gpu.quick.gpu import Gpu, random_bytes
from tests.gpu.quick.report import Report, WrongBytes
from tests.gpu.quick.site import DONE, Blocks, Worker, key_of, serving
from tests.support.raw import RawClient, decode

_RUN, _BLOCKS, _LAYERS = 4096, 32, 2
_SOURCE = list(range(1, 9))
# Long enough for a server that does not wait to have answered.
_PATIENCE = 0.3


def run(report: Report) -> None:
    gpu = Gpu()
    with serving() as server, RawClient(server.url) as client:
        for number, timeline in enumerate((False, True)):
            kind = "a timeline word" if timeline else "an IPC event"
            blocks = Blocks(gpu, _RUN, _BLOCKS, _LAYERS, seed=number)
            worker = Worker(client, blocks, number + 1, timeline)
            key = key_of(number, 2)
            _store(report, worker, key, kind)
            _load(report, worker, key, kind)
            worker.close()


def _store(report: Report, worker: Worker, key: dict[str, object], kind: str) -> None:
    """The kernels before it are still writing when the request arrives."""
    gpu, blocks = worker.blocks.gpu, worker.blocks
    late = random_bytes(blocks.nbytes, 99)
    held = gpu.allocate(blocks.nbytes)
    gpu.write(held, late)
    hold = gpu.hold(gpu.stream)
    gpu.copy_one(blocks.address, held, blocks.nbytes)
    frames = worker.frames("store", key, _SOURCE)
    worker.client.send(frames)
    report.check(f"a store waits for {kind}", not _answered(worker, frames))
    hold.release()
    report.check(f"and is done after it ({kind})", _result(worker, frames))
    blocks.fill(np.zeros(blocks.nbytes, np.uint8))
    report.check(f"what it stored is loaded ({kind})", worker.retrieve(key, _SOURCE))
    expected = np.zeros_like(blocks.image())
    expected[:, _SOURCE] = late.reshape(expected.shape)[:, _SOURCE]
    report.same(f"it read what was written last ({kind})", np.array_equal(blocks.image(), expected))


def _load(report: Report, worker: Worker, key: dict[str, object], kind: str) -> None:
    """The kernels before it are still reading the blocks that it writes."""
    gpu, blocks = worker.blocks.gpu, worker.blocks
    stored = blocks.image()[:, _SOURCE]
    used = random_bytes(blocks.nbytes, 98)
    blocks.fill(used)
    seen = gpu.allocate(blocks.nbytes)
    worker.lookup(key)
    hold = gpu.hold(gpu.stream)
    gpu.copy_one(seen, blocks.address, blocks.nbytes)
    frames = worker.frames("retrieve", key, _SOURCE)
    worker.client.send(frames)
    report.check(f"a load waits for {kind}", not _answered(worker, frames))
    hold.release()
    report.check(f"and is done after that ({kind})", _result(worker, frames))
    gpu.finish()
    whole = np.array_equal(gpu.read(seen, blocks.nbytes), used)
    report.same(f"it wrote nothing before ({kind})", whole)
    report.same(f"and everything then ({kind})", np.array_equal(blocks.image()[:, _SOURCE], stored))


def _answered(worker: Worker, frames: list[bytes]) -> bool:
    """Whether it is done already. Raises WrongBytes: then it did not wait."""
    time.sleep(_PATIENCE)
    if worker.client.socket.poll(0):
        reply = worker.client.receive()
        if reply[0] == frames[0] and decode(reply[2]) == DONE:
            raise WrongBytes("a request was done before its event")
        return True
    return False


def _result(worker: Worker, frames: list[bytes]) -> bool:
    while (reply := worker.client.receive())[0] != frames[0]:
        pass
    return bool(decode(reply[2]) == DONE)
