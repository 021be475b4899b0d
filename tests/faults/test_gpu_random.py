"""Random stores and retrieves of several workers while their GPU fails again and again."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import numpy as np

from tests.support.fake_gpu import ILLEGAL
from tests.support.gpu_site import BLOCKS_A_CHUNK, GpuSite, key_of
from tests.support.gpu_worker import GpuPool, GpuWorker
from tests.support.raw import RawClient

SECONDS, KEYS, CHUNKS = 4.0, 12, 3
BLOCKS = CHUNKS * BLOCKS_A_CHUNK


class Striver(threading.Thread):
    """A worker that stores and retrieves at random; what it gets is compared to the byte."""

    def __init__(self, url: str, instance: int, size: int) -> None:
        super().__init__()
        self._url, self._instance, self._size = url, instance, size
        self._random = random.Random(instance)
        self.until = time.monotonic() + SECONDS
        self.verified = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with RawClient(self._url) as client:
                pool = GpuPool(blocks=40, size=self._size, seed=self._instance)
                worker = GpuWorker(client, f"striver-{self._instance}", self._instance, pool)
                worker.register()
                while time.monotonic() < self.until:
                    self.turn(worker)
                worker.close()
        except BaseException as error:
            self.error = error

    def turn(self, worker: GpuWorker) -> None:
        seed, data = self._random.randrange(KEYS), worker.pool.data
        key, ids = key_of(seed, CHUNKS, worker.model), self._random.sample(range(1, 40), BLOCKS)
        content = self.content(worker, seed)
        if self._random.random() < 0.5:
            data[:, ids] = content
            done = worker.store(key, ids)[1]
        else:
            data[:, ids] = 0
            done = worker.retrieve(key, ids)[1]
            if done:
                assert np.array_equal(data[:, ids], content), f"wrong bytes of {seed}"
                self.verified += 1
        if not done and worker.client.call("ping", self._instance) is False:
            worker.register()

    def content(self, worker: GpuWorker, seed: int) -> np.ndarray:
        shape = (worker.pool.data.shape[0], BLOCKS, *worker.pool.data.shape[2:])
        generator = np.random.default_rng([self._instance, seed])
        return generator.integers(1, 1 << 16, shape, dtype=np.uint16)


def test_no_byte_is_ever_wrong(gpu_site: GpuSite) -> None:
    """Harmless and fatal errors, slow streams, killed processes; staged runs and direct ones."""
    strivers = [Striver(gpu_site.server.url, 11 + n, size) for n, size in enumerate((8, 256))]
    for striver in strivers:
        striver.start()
    chance = random.Random(0)
    while any(striver.is_alive() for striver in strivers):
        fault = chance.choice(["none", "none", "harmless", "fatal", "slow", "killed"])
        code = {"harmless": 2, "fatal": ILLEGAL}.get(fault)
        call = chance.choice(["copy", "copy_runs", "is_done", "open_event", "map_memory"])
        if code is not None:
            gpu_site.fail({"call": call, "nth": chance.randrange(1, 4), "code": code})
        elif fault == "slow":
            gpu_site.fail({"call": "stream", "delay": 0.01})
        else:
            gpu_site.fail()
        for pid in gpu_site.children() if fault == "killed" else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        strivers[0].join(0.4)
    for striver in strivers:
        assert striver.error is None, striver.error
        assert striver.verified > 0
    gpu_site.fail()
    gpu_site.worker(1).prove(list(range(128)), 64)
    gpu_site.server.assert_no_leases()
