"""A client that needs only pyzmq, msgspec and numpy: every frame of it is made by hand."""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import zmq

OPERATIONS = {
    "register_kv_cache": 1,
    "unregister_kv_cache": 2,
    "store": 6,
    "retrieve": 7,
    "lookup": 8,
    "query_prefetch_status": 9,
    "wait_prefetch_status": 10,
    "free_lookup_locks": 12,
    "end_session": 13,
    "register_kv_cache_engine_driven_context": 14,
    "unregister_kv_cache_engine_driven_context": 15,
    "prepare_store": 16,
    "commit_store": 17,
    "prepare_retrieve": 18,
    "commit_retrieve": 19,
    "clear": 20,
    "get_chunk_size": 21,
    "ping": 22,
    "report_block_allocation": 23,
    "noop": 24,
    "get_experimental": 32,
}
EVENT = b"stub_ipc_handle"
# The layout of an engine-driven worker that announces one, 4 KiB a token.
ENGINE = {
    "world_size": 1,
    "block_size": 16,
    "num_layers": 2,
    "hidden_dim_size": 1024,
    "dtype_str": "float16",
    "use_mla": True,
    "num_physical_slots": 64,
}
encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode
_segments = itertools.count()


class NoReply(Exception):
    """The server did not answer in time."""


class RawClient:
    """One DEALER socket."""

    def __init__(self, url: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.ipv6 = "[" in url
        self.socket.connect(url)
        self._uids = itertools.count()

    def greet(self) -> int:
        """What every stock adapter asks first: the chunk size.

        By its name, which only the newest generation's clients give an operation.
        """
        size: int = self.call("get_chunk_size", as_name=True)
        return size

    def close(self) -> None:
        self.context.destroy(linger=0)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, frames: Sequence[bytes]) -> None:
        self.socket.send_multipart(list(frames))

    def receive(self, timeout: float = 30.0) -> list[bytes]:
        if not self.socket.poll(int(timeout * 1000)):
            raise NoReply
        return self.socket.recv_multipart()

    def frames(self, operation: str | int, *payloads: Any, as_name: bool = False) -> list[bytes]:
        """The frames of one request, with a fresh uid."""
        number = operation if as_name else OPERATIONS.get(str(operation), operation)
        return [encode(next(self._uids)), encode(number), *map(encode, payloads)]

    def exchange(self, frames: Sequence[bytes], timeout: float = 30.0) -> list[bytes]:
        """Send a request and return its reply's frames; other replies are dropped."""
        self.send(frames)
        end = time.monotonic() + timeout
        while True:
            reply = self.receive(max(0.0, end - time.monotonic()))
            if reply[0] == frames[0]:
                assert reply[1] == frames[1], "the operation must be echoed byte for byte"
                assert len(reply) in (2, 3), reply
                return reply

    def call(self, operation: str | int, *payloads: Any, as_name: bool = False) -> Any:
        """The decoded result; None for a reply without a value frame."""
        return self.result(self.frames(operation, *payloads, as_name=as_name))

    def result(self, frames: Sequence[bytes]) -> Any:
        return self.value(self.exchange(frames))

    @staticmethod
    def value(reply: Sequence[bytes]) -> Any:
        if len(reply) == 2:
            return None
        value = decode(reply[2])
        assert value is not None, "None travels as two frames"
        return value


def make_key(
    tokens: Sequence[int],
    start: int,
    end: int,
    *,
    model: str,
    worker: int | None = 0,
    world: int = 1,
    request: str = "r",
    salt: str = "",
    readers: int = 1,
    **extra: Any,
) -> dict[str, Any]:
    """The key map of a request."""
    return {
        "model_name": model,
        "world_size": world,
        "worker_id": worker,
        "token_ids": list(tokens),
        "start": start,
        "end": end,
        "request_id": request,
        "cache_salt": salt,
        "request_configs": None,
        "num_kv_readers": readers,
        **extra,
    }


class RawPool:
    """A worker's paged KV cache in shared memory: [layers][blocks, heads, slots, 2 * head size].

    fp16 in the fused layout (format 12), all layers in one segment.
    """

    LAYERS, HEADS, SLOTS, SIZE = 2, 2, 16, 8

    def __init__(self, blocks: int = 64, seed: int = 0) -> None:
        self.blocks = blocks
        self.name = f"/lmcache_kv_{os.getpid()}_{next(_segments) + 500_000}"
        shape = (self.LAYERS, blocks, self.HEADS, self.SLOTS, 2 * self.SIZE)
        self.nbytes = int(np.prod(shape)) * 2
        fd = os.open(f"/dev/shm{self.name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, self.nbytes)
        self._map = mmap.mmap(fd, self.nbytes)
        os.close(fd)
        self.data = np.frombuffer(self._map, dtype=np.uint16).reshape(shape)
        self.data[:] = np.random.default_rng(seed).integers(0, 1 << 16, shape, dtype=np.uint16)

    def descriptor(self, layer: int) -> dict[str, Any]:
        """The fields of the cpu_shm descriptor of one layer."""
        shape = self.data.shape[1:]
        return {
            "type": "cpu_shm",
            "version": 1,
            "metadata": {
                "dtype": "float16",
                "shape": list(shape),
                "stride": [int(np.prod(shape[i + 1 :])) for i in range(len(shape))],
                "storage_offset": layer * int(np.prod(shape)),
                "device_uuid": "cpu",
            },
            "shm_name": self.name,
            "nbytes": self.nbytes,
        }

    def caches(self) -> list[msgspec.msgpack.Ext]:
        return [extension(self.descriptor(layer)) for layer in range(self.LAYERS)]

    def unlink(self) -> None:
        if os.path.exists(f"/dev/shm{self.name}"):
            os.unlink(f"/dev/shm{self.name}")


def extension(descriptor: Any) -> msgspec.msgpack.Ext:
    """A device-handle descriptor as it travels."""
    return msgspec.msgpack.Ext(1, encode(descriptor))


class RawWorker:
    """A handle-mode worker over a RawPool."""

    def __init__(
        self, client: RawClient, model: str, instance: int, pool: RawPool | None = None
    ) -> None:
        self.client, self.model, self.instance = client, model, instance
        self.pool = pool or RawPool(seed=instance & 0xFFFF)

    def registration(self, caches: Any = None) -> list[Any]:
        """The payloads of register_kv_cache."""
        tensors = self.pool.caches() if caches is None else caches
        return [self.instance, tensors, self.model, 1, "vllm", {"kv_layout": "HND"}, []]

    def register(self) -> None:
        """By its name, like `greet`."""
        registration = self.registration()
        assert self.client.call("register_kv_cache", *registration, as_name=True) is None

    def store(self, key: Any, blocks: Sequence[int]) -> Any:
        return self.client.call("store", key, self.instance, [list(blocks)], EVENT)

    def retrieve(self, key: Any, blocks: Sequence[int], skip: int = 0) -> Any:
        return self.client.call("retrieve", key, self.instance, [list(blocks)], EVENT, skip)

    def lookup(self, key: Any) -> Any:
        """Chunks found; the key's worker must be None."""
        assert self.client.call("lookup", key, 1) is None
        while (found := self.client.call("query_prefetch_status", key["request_id"])) is None:
            time.sleep(0.01)
        return found

    def prove(self, tokens: Sequence[int], chunk: int, salt: str = "") -> None:
        """Store `tokens`, find them, bring them back to other blocks: all of it correct."""
        assert not len(tokens) % chunk, "whole chunks only"
        count = len(tokens) // self.pool.SLOTS
        source = list(range(1, count + 1))
        target = list(range(count + 1, 2 * count + 1))
        request = f"prove-{tokens[0]}"
        where = {"model": self.model, "request": request, "salt": salt}
        key = make_key(tokens, 0, len(tokens), **where)  # type: ignore[arg-type]
        assert self.store(key, source)[1] is True
        self.pool.data[:, target] = 0
        assert self.lookup({**key, "worker_id": None}) == len(tokens) // chunk
        assert self.retrieve(key, target)[1] is True
        assert np.array_equal(self.pool.data[:, source], self.pool.data[:, target])
        self.client.call("end_session", request)

    def close(self) -> None:
        self.client.call("unregister_kv_cache", self.instance)
        self.pool.unlink()
