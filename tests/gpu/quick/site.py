"""A server, a client made by hand, and workers whose blocks are device memory."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.gpu.quick.gpu import BATCHES, Gpu, random_bytes
from tests.gpu.quick.report import Report
from tests.support.raw import RawClient, extension, make_key
from tests.support.server import Server

HEADS, SLOTS, BLOCKS_A_CHUNK = 2, 16, 4
RUN_UNIT = HEADS * SLOTS * 2 * 2  # bytes of a block in a layer, for each element of the head size
DONE = [b"", True]
_TIMELINE_BYTES = 32 << 10


@contextmanager
def serving(*flags: str, l1_gb: float = 0.5, batches: bool = BATCHES) -> Iterator[Server]:
    """A server that is up. It ends with this process, too, whatever ends that."""
    with tempfile.TemporaryDirectory(prefix="gpu-quick-") as folder:
        switch = "true" if batches else "false"
        given = ("--gpu-batched-copies", switch, *flags)
        server = Server(Path(folder), *given, l1_size_gb=l1_gb, chunk_size=SLOTS * BLOCKS_A_CHUNK)
        try:
            yield server.start()
        finally:
            server.stop()
            print(server.stderr())  # into the log of the step


class Blocks:
    """Paged KV memory on the GPU, fp16 of format 12: [layers][blocks, heads, slots, 2 * size].

    A block of a layer is one run of `run` bytes, a multiple of 128.
    """

    def __init__(self, gpu: Gpu, run: int, blocks: int, layers: int, seed: int = 0) -> None:
        self.gpu, self.run, self.blocks, self.layers = gpu, run, blocks, layers
        self.nbytes = run * blocks * layers
        self.address = gpu.allocate(self.nbytes)
        self._handle = gpu.memory_handle(self.address)
        self.fill(random_bytes(self.nbytes, seed))

    def fill(self, data: np.ndarray) -> None:
        self.gpu.write(self.address, np.ascontiguousarray(data))

    def image(self) -> np.ndarray:
        """All bytes: [layers, blocks, run]."""
        return self.gpu.read(self.address, self.nbytes).reshape(self.layers, self.blocks, self.run)

    def caches(self) -> list[msgspec.msgpack.Ext]:
        return [extension(self._descriptor(layer)) for layer in range(self.layers)]

    def _descriptor(self, layer: int) -> dict[str, Any]:
        shape = [self.blocks, HEADS, SLOTS, self.run // (HEADS * SLOTS * 2)]
        layer_bytes = self.run * self.blocks
        metadata = {
            "dtype": "float16",
            "shape": shape,
            "stride": [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))],
            "storage_offset": 0,
            "device_uuid": _dashed(self.gpu.about.uuid),
        }
        raw = {"ipc_handle": self._handle, "alloc_offset": layer * layer_bytes}
        return {
            "type": "cuda_raw", "version": 1, "metadata": metadata, "nbytes": layer_bytes, **raw,
        }  # fmt: skip


class Events:
    """What a worker sends with a request: that its stream has come so far."""

    def __init__(self, gpu: Gpu, is_timeline: bool = False) -> None:
        self._gpu, self._value = gpu, 0
        self._words = gpu.allocate(_TIMELINE_BYTES) if is_timeline else None
        self._event = 0 if is_timeline else gpu.new_shared_event()
        if self._words is not None:
            gpu.write(self._words, np.zeros(_TIMELINE_BYTES, np.uint8))

    def record(self, stream: int | None = None) -> bytes:
        """The bytes that are sent for it."""
        stream = self._gpu.stream if stream is None else stream
        if self._words is None:
            self._gpu.record(self._event, stream)
            return self._gpu.event_handle(self._event)
        self._value += 1
        self._gpu.write_word(self._words, self._value, stream)
        return struct.pack(">B64sQQ", 1, self._gpu.memory_handle(self._words), 0, self._value)


class Worker:
    """A registered worker."""

    def __init__(
        self, client: RawClient, blocks: Blocks, instance: int, timeline: bool = False
    ) -> None:
        self.client, self.blocks, self.instance = client, blocks, instance
        self.events = Events(blocks.gpu, timeline)
        self.register()

    def register(self) -> None:
        hints: Any = {"kv_layout": "HND"}
        payloads = [self.instance, self.blocks.caches(), "quick", 1, "vllm", hints, []]
        self.client.call("register_kv_cache", *payloads)

    def frames(self, what: str, key: Any, ids: Sequence[int]) -> list[bytes]:
        """A request behind all that our stream has to do."""
        payloads = [key, self.instance, [list(ids)], self.events.record()]
        return self.client.frames(what, *payloads, *([0] if what == "retrieve" else []))

    def store(self, key: Any, ids: Sequence[int]) -> bool:
        return bool(self.client.result(self.frames("store", key, ids)) == DONE)

    def retrieve(self, key: Any, ids: Sequence[int]) -> bool:
        """Looked up before."""
        self.lookup(key)
        return bool(self.client.result(self.frames("retrieve", key, ids)) == DONE)

    def lookup(self, key: Any) -> int:
        free = {**key, "worker_id": None}
        assert self.client.call("lookup", free, 1) is None
        found = None
        while found is None:
            found = self.client.call("query_prefetch_status", key["request_id"])
        return int(found)

    def close(self) -> None:
        self.client.call("unregister_kv_cache", self.instance)


def key_of(seed: int, chunks: int) -> dict[str, Any]:
    """The key of a request of its own."""
    tokens = [seed, *range(1, chunks * SLOTS * BLOCKS_A_CHUNK)]
    return make_key(tokens, 0, len(tokens), model="quick", request=f"quick-{seed}")


def round_trip(report: Report, worker: Worker, what: str, chunks: int, seed: int) -> None:
    """Store from random blocks and bring it back to others; every byte of all blocks compared."""
    count, blocks = chunks * BLOCKS_A_CHUNK, worker.blocks
    ids = np.random.default_rng(seed).permutation(np.arange(1, blocks.blocks))
    source, target = ids[:count], ids[count : 2 * count]
    before, key = blocks.image(), key_of(seed, chunks)
    if not (worker.store(key, source.tolist()) and worker.retrieve(key, target.tolist())):
        report.check(f"{what}: stored and loaded", False)
        return
    before[:, target] = before[:, source]
    report.same(what, np.array_equal(blocks.image(), before))


def _dashed(uuid: str) -> str:
    cuts = (0, 8, 12, 16, 20, 32)
    return "-".join(uuid[start:end] for start, end in pairwise(cuts))
