"""A whole server with an L2: a worker whose sequences have numbers, and the server's accounts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.raw import EVENT, RawClient, RawPool, RawWorker, make_key
from tests.support.server import Metrics, Server, wait_until

CHUNKS = 3  # of each sequence
BLOCKS_A_CHUNK = 4
SEQUENCES = 32
LONG = 120.0  # seconds; nothing here takes a tenth of it on a machine that is not busy


def adapter_flags(**settings: Any) -> list[str]:
    return ["--l2-adapter", json.dumps(settings)]


def fs_flags(directory: Path, **settings: Any) -> list[str]:
    """An `fs` adapter that uses the disk to the last byte."""
    return adapter_flags(**{"type": "fs", "base_path": str(directory), "min_free_gb": 0} | settings)


class L2Worker:
    """A registered worker. The bytes of sequence `number` are the same in every process."""

    chunks = CHUNKS

    def __init__(
        self, client: RawClient, server: Server, model: str = "l2-model", instance: int = 5
    ) -> None:
        self.server, self.model = server, model
        per_sequence = CHUNKS * BLOCKS_A_CHUNK
        pool = RawPool(blocks=1 + (SEQUENCES + 1) * per_sequence, seed=4711)
        self._worker = RawWorker(client, model, instance, pool)
        self._truth = pool.data.copy()
        self._target = list(range(1 + SEQUENCES * per_sequence, pool.blocks))
        self._requests = 0
        self._worker.register()

    @property
    def pool(self) -> RawPool:
        return self._worker.pool

    @property
    def client(self) -> RawClient:
        return self._worker.client

    def store(self, *numbers: int) -> None:
        for number in numbers:
            assert self._worker.store(self._key(number), self._blocks(number))[1] is True

    def send_store(self, number: int) -> None:
        """Do not wait for the answer."""
        instance, blocks = self._worker.instance, self._blocks(number)
        self.client.send(self.client.frames("store", self._key(number), instance, [blocks], EVENT))

    def lookup(self, number: int) -> tuple[str, int]:
        """The request and its hit in chunks."""
        key = self._key(number, request=self._new_request())
        return key["request_id"], self._worker.lookup({**key, "worker_id": None})

    def hits(self, number: int) -> int:
        """The hit of a lookup in chunks, of which nothing is retrieved."""
        request, hits = self.lookup(number)
        self.client.call("end_session", request)
        return hits

    def check(self, number: int) -> int:
        """Look a sequence up, retrieve the hit, compare its bytes; the hit in chunks.

        No block is touched that is not part of the hit.
        """
        request, hits = self.lookup(number)
        pool, target = self.pool, self._target
        pool.data[:, target] = 0xABCD
        if hits:
            key = self._key(number, hits, request)
            ids = target[: hits * BLOCKS_A_CHUNK]
            assert self._worker.retrieve(key, ids)[1] is True
            source = self._blocks(number)[: len(ids)]
            assert np.array_equal(pool.data[:, ids], self._truth[:, source]), f"{number} is wrong"
        assert (pool.data[:, target[hits * BLOCKS_A_CHUNK :]] == 0xABCD).all()
        self.client.call("end_session", request)
        return hits

    def check_all(self, *numbers: int) -> list[int]:
        return [self.check(number) for number in numbers]

    def close(self) -> None:
        self._worker.close()

    def _new_request(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"

    def _blocks(self, number: int) -> list[int]:
        first = 1 + number * CHUNKS * BLOCKS_A_CHUNK
        return list(range(first, first + CHUNKS * BLOCKS_A_CHUNK))

    def _key(self, number: int, chunks: int = CHUNKS, request: str = "store") -> dict[str, Any]:
        size = self.server.chunk_size
        tokens = [number * 1000 + i for i in range(CHUNKS * size)]
        return make_key(tokens, 0, chunks * size, model=self.model, request=request)


def adapter_status(server: Server) -> Any:
    """What /status says of the first adapter."""
    return server.status()["storage_manager"]["l2_adapters"][0]


def wait_written(server: Server) -> None:
    """Until nothing is queued for L2 any more."""

    def written() -> bool:
        status = adapter_status(server)
        return not (status["inflight_stores"] or status["queued_stores"])

    wait_until(written, "L2 written", LONG)


def clear_l1(server: Server) -> None:
    """What is asked for from now on comes from L2, or not at all."""
    assert server.request("/cache/clear", {"tier": "l1", "force": True})[0] == 200


def counter(server: Server, name: str, **labels: str) -> int:
    """`lmcache_mp_<name>_total`, whatever its unit adds to that."""
    metrics: Metrics = server.metrics()
    names = (f"lmcache_mp_{name}{unit}_total" for unit in ("", "_chunks", "_requests"))
    return int(sum(metrics.total(each, **labels) for each in names))


def wait_counter(server: Server, name: str, least: int, **labels: str) -> None:
    what = f"{name}{labels} at least {least}"
    wait_until(lambda: counter(server, name, **labels) >= least, what, LONG)


def objects(directory: Path) -> list[Path]:
    """The records of an `fs` adapter, in no order."""
    return [path for path in directory.glob("objects/*/*/*") if path.suffix == ".kv"]


def quarantined(directory: Path) -> list[Path]:
    return sorted((directory / "quarantine").iterdir())


def partial_files(directory: Path) -> list[Path]:
    return list((directory / ".tmp").iterdir())
