"""A worker whose KV memory is on the fake GPU."""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.support.fake_gpu import PREFIX, SHM, UUID, handle_of
from tests.support.raw import RawClient, RawWorker, extension

_names = itertools.count()


class DeviceMemory:
    """Memory of the fake GPU that another process can map by its `handle`."""

    def __init__(self, nbytes: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}_{next(_names)}"
        self.path: Path = SHM / self.name
        self.handle = handle_of(self.name)
        with self.path.open("x+b") as file:
            file.truncate(nbytes)
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)


class Event(DeviceMemory):
    """An IPC event; `signal` lets it happen."""

    def __init__(self, done: bool = False) -> None:
        super().__init__(1)
        self.bytes[0] = done

    def signal(self) -> None:
        self.bytes[0] = 1


class Timeline(DeviceMemory):
    """Words of isolated_ipc."""

    def event(self, value: int, slot: int = 1) -> bytes:
        return struct.pack(">B64sQQ", 1, self.handle, slot * 8, value)

    def write(self, value: int, slot: int = 1) -> None:
        self.bytes.view(np.uint64)[slot] = value


class GpuPool:
    """Paged KV cache of format 12, fp16: [layers][blocks, heads, slots, 2 * head size].

    `head` bytes lie before the first layer in the allocation. `as_torch` describes it as torch
    shares storages (with its counter file), else as the driver's memory.
    """

    HEADS, SLOTS = 2, 16

    def __init__(
        self,
        blocks: int = 64,
        layers: int = 2,
        size: int = 8,
        *,
        head: int = 512,
        seed: int = 0,
        uuid: str = UUID,
        as_torch: bool = False,
    ) -> None:
        self.blocks, self.uuid = blocks, uuid
        self._head, self._as_torch = head, as_torch
        shape = (layers, blocks, self.HEADS, self.SLOTS, 2 * size)
        self.nbytes = int(np.prod(shape)) * 2
        self.memory = DeviceMemory(head + self.nbytes)
        self.name = self.memory.name
        self.data = self.memory.bytes[head:].view(np.uint16).reshape(shape)
        self.data[:] = np.random.default_rng(seed).integers(0, 1 << 16, shape, dtype=np.uint16)
        self.counter = SHM / f"torch_{os.getpid()}_{next(_names)}"
        if as_torch:
            self.counter.write_bytes(np.ones(4, np.int64).tobytes())

    def descriptor(self, layer: int) -> dict[str, Any]:
        shape = list(self.data.shape[1:])
        layer_bytes = int(np.prod(shape)) * 2
        metadata = {
            "dtype": "float16",
            "shape": shape,
            "stride": [int(np.prod(shape[i + 1 :])) for i in range(len(shape))],
            "storage_offset": layer * layer_bytes // 2 if self._as_torch else 0,
            "device_uuid": self.uuid.removeprefix("GPU-"),
        }
        common = {"version": 1, "metadata": metadata}
        if not self._as_torch:
            offset = self._head + layer * layer_bytes
            raw = {"ipc_handle": self.memory.handle, "alloc_offset": offset, "nbytes": layer_bytes}
            return {"type": "cuda_raw", **common, **raw}
        handle = [
            0, b"\2c" + self.memory.handle, self.nbytes, self._head,
            f"/{self.counter.name}".encode(), layer, bytes(64), True,
        ]  # fmt: skip
        return {"type": "cuda", **common, "handle": handle}

    def caches(self) -> list[msgspec.msgpack.Ext]:
        return [extension(self.descriptor(layer)) for layer in range(len(self.data))]

    def counts(self) -> list[int]:
        """torch's counters: two of the layers, two of something else."""
        found: list[int] = np.frombuffer(self.counter.read_bytes(), np.int64).tolist()
        return found

    def unlink(self) -> None:
        self.memory.unlink()
        self.counter.unlink(missing_ok=True)


class GpuWorker(RawWorker):
    """A handle-mode worker over a GpuPool; its events have happened unless one is given."""

    pool: GpuPool

    def __init__(
        self, client: RawClient, model: str, instance: int, pool: GpuPool | None = None
    ) -> None:
        super().__init__(client, model, instance, pool or GpuPool(seed=instance & 0xFFFF))  # type: ignore[arg-type]
        self.done = Event(done=True)

    def store(self, key: Any, blocks: Sequence[int], event: bytes | None = None) -> Any:
        return self.client.call("store", *self.request(key, blocks, event))

    def retrieve(
        self, key: Any, blocks: Sequence[int], skip: int = 0, event: bytes | None = None
    ) -> Any:
        return self.client.call("retrieve", *self.request(key, blocks, event), skip)

    def request(self, key: Any, blocks: Sequence[int], event: bytes | None = None) -> list[Any]:
        """The payloads of a store."""
        return [key, self.instance, [list(blocks)], event or self.done.handle]

    def close(self) -> None:
        super().close()
        self.done.unlink()
