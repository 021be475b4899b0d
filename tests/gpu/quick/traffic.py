"""Transfers of whole requests through the server, and how fast they are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np

from tests.gpu.quick.gpu import Gpu, wait
from tests.gpu.quick.report import Skipped, WrongBytes
from tests.gpu.quick.site import BLOCKS_A_CHUNK, Blocks, Worker, key_of, serving
from tests.support.raw import RawClient
from tests.support.server import Server

_ALL_PINNED_SECONDS = 30.0


class Traffic:
    """Requests of `nbytes` in runs of `run` bytes, from random blocks and back to others."""

    def __init__(self, gpu: Gpu, client: RawClient, run: int, layers: int, nbytes: int) -> None:
        chunk = run * layers * BLOCKS_A_CHUNK
        self._chunks = max(1, nbytes // chunk)
        self.nbytes = self._chunks * chunk
        count = self._chunks * BLOCKS_A_CHUNK
        self._blocks = Blocks(gpu, run, 2 * count + 1, layers)
        ids = np.random.default_rng(0).permutation(np.arange(1, 2 * count + 1)).tolist()
        self._source, self._target = ids[:count], ids[count:]
        self._worker, self._turn = Worker(client, self._blocks, 1), 0

    def turn(self) -> tuple[float, float]:
        """Store a new request and load it again; seconds of each. Raises RuntimeError."""
        self._turn += 1
        key = key_of(self._turn, self._chunks)
        start = time.perf_counter()
        stored = self._worker.store(key, self._source)
        between = time.perf_counter()
        found = self._worker.lookup(key)
        begun = time.perf_counter()
        client, frames = self._worker.client, self._worker.frames("retrieve", key, self._target)
        loaded = client.result(frames)[1]
        if not (stored and found == self._chunks and loaded):
            raise RuntimeError("the server refused a transfer")
        return between - start, time.perf_counter() - begun

    def rates(self, turns: int) -> tuple[float, float]:
        """GB/s of stores and of loads, medians."""
        self.turn()
        seconds = [self.turn() for _ in range(turns)]
        store, load = (self.nbytes / median(each) / 1e9 for each in zip(*seconds, strict=True))
        return store, load

    def check(self) -> None:
        """What was loaded last is what was stored. Raises WrongBytes."""
        image = self._blocks.image()
        if not np.array_equal(image[:, self._source], image[:, self._target]):
            raise WrongBytes(f"a request of {self.nbytes} bytes")


@contextmanager
def pinned_server(l1_gb: float) -> Iterator[Server]:
    """A server with room for some requests. Raises Skipped if /dev/shm has none."""
    shm = os.statvfs("/dev/shm")
    if shm.f_bavail * shm.f_frsize < 1.1 * l1_gb * 2**30:
        raise Skipped(f"/dev/shm has no room for {l1_gb} GiB")
    with serving(l1_gb=l1_gb) as server:
        yield server


def wait_pinned(server: Server, l1_gb: float) -> None:
    """After a worker has registered; what is not pinned by then is pinned when it is needed."""

    def is_pinned() -> bool:
        pinned = server.metrics().total("lmcache_mp_l1_memory_pinned_bytes")
        return pinned >= 0.99 * l1_gb * 2**30

    try:
        wait(is_pinned, "the L1 is pinned", _ALL_PINNED_SECONDS, 0.1)
    except TimeoutError as error:
        print(error)  # into the log of the step
