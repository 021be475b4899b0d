"""A server whose L1 outlives it, and a worker of it: prompts that have bytes of their own each."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.raw import RawClient, RawPool, RawWorker, make_key
from tests.support.server import CHUNK_SIZE, Server

MODEL, CHUNKS = "kept", 4
BLOCKS = CHUNKS * CHUNK_SIZE // RawPool.SLOTS
SOURCE, TARGET = list(range(1, BLOCKS + 1)), list(range(BLOCKS + 1, 2 * BLOCKS + 1))
KEEP = ("--l1-keep-seconds", "600")


def tokens_of(number: int) -> list[int]:
    return [number, *range(1, CHUNKS * CHUNK_SIZE)]


def key_of(number: int, **others: Any) -> dict[str, Any]:
    tokens = tokens_of(number)
    return make_key(tokens, 0, len(tokens), model=MODEL, request=f"r{number}", **others)


class Site:
    """A handle-mode worker whose blocks differ for each prompt."""

    def __init__(self, server: Server) -> None:
        self.client = RawClient(server.url)
        self.client.greet()
        self.worker = RawWorker(self.client, MODEL, 7, RawPool(blocks=2 * BLOCKS + 1))
        self.worker.register()

    def fill(self, number: int) -> np.ndarray[Any, Any]:
        shape = self.worker.pool.data[:, SOURCE].shape
        return np.random.default_rng(number).integers(0, 1 << 16, shape, dtype=np.uint16)

    def store(self, number: int) -> None:
        self.worker.pool.data[:, SOURCE] = self.fill(number)
        assert self.worker.store(key_of(number), SOURCE)[1] is True

    def lookup(self, number: int) -> int:
        found = int(self.worker.lookup(key_of(number, worker=None)))
        if not found:
            self.client.call("end_session", f"r{number}")
        return found

    def check(self, number: int) -> None:
        """What was stored comes back, byte for byte."""
        self.worker.pool.data[:, TARGET] = 0
        assert self.lookup(number) == CHUNKS
        assert self.worker.retrieve(key_of(number), TARGET)[1] is True
        assert np.array_equal(self.worker.pool.data[:, TARGET], self.fill(number))
        self.client.call("end_session", f"r{number}")

    def close(self) -> None:
        self.worker.pool.unlink()
        self.client.close()


def finish(server: Server, how: str) -> None:
    if how == "SIGTERM":
        assert server.terminate() == 0
    else:
        server.kill()
