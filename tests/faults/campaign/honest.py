"""Honest clients: what they load is what they stored, and each request is answered in time.

They look up, load, compare every byte, store what is missing, and say whom they are; what they
find wrong they note, and go on.
"""

from __future__ import annotations

import mmap
import random
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.campaign.prompts import CHUNK_BYTES, CHUNKS, PROMPTS, kv_of, tokens_of
from tests.faults.campaign.target import CHUNK, ENGINE_ID, ENGINE_MODEL, HANDLE_ID, HANDLE_MODEL
from tests.support.raw import EVENT, NoReply, RawClient, RawPool, RawWorker, make_key

LATE_SECONDS = 5.0
L2_SECONDS = 10.0  # a lookup is given so long for what is in L2 only
_GIVE_UP_SECONDS = 60.0
_PING_SECONDS = 2.0
_BLOCKS_A_CHUNK = CHUNK // RawPool.SLOTS


@dataclass
class Sum:
    """What a client has done: requests, chunks loaded and compared; what was wrong, and what it was
    refused, which only few neighbours may bring about."""

    requests: int = 0
    chunks: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


class Honest(threading.Thread, ABC):
    """One client that works until `stop`."""

    model: str
    instance: int

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = RawClient(url)
        self.client.greet()
        self.random = random.Random(seed)
        self.sum = Sum()
        self._over = threading.Event()

    def take(self) -> Sum:
        """What has happened since it was last asked for."""
        now, self.sum = self.sum, Sum()
        return now

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self.one_request(self.random.randrange(PROMPTS))
            except NoReply:
                self.sum.problems.append("a request was not answered")
                return
            except Exception as error:
                self.sum.problems.append(f"{error!r}")
                return

    def stop(self) -> None:
        self._over.set()
        self.join(2 * _GIVE_UP_SECONDS)
        if self.is_alive():
            self.sum.problems.append("it does not end")
            return
        self.leave()
        self.client.close()

    def ask(self, operation: str, *payloads: Any) -> Any:
        """A call whose answer must come in time."""
        return self.ask_over(self.client, operation, *payloads)

    def ask_over(self, client: RawClient, operation: str, *payloads: Any) -> Any:
        """The same over another connection."""
        frames = client.frames(operation, *payloads)
        began = time.monotonic()
        reply = client.exchange(frames, _GIVE_UP_SECONDS)
        self.sum.requests += 1
        self._in_time(operation, began, LATE_SECONDS)
        return client.value(reply)

    def _in_time(self, what: str, began: float, limit: float) -> None:
        took = time.monotonic() - began
        self.sum.slowest = max(self.sum.slowest, took)
        if took > limit:
            self.sum.problems.append(f"{what} took {took:.1f} s")

    @abstractmethod
    def warm_up(self) -> None:
        """Store prompts, each once."""

    @abstractmethod
    def one_request(self, number: int) -> None:
        """What vLLM does with a prompt."""

    @abstractmethod
    def register(self) -> None:
        """Register the worker."""

    @abstractmethod
    def leave(self) -> None:
        """Unregister the worker."""


class OfLMCache(Honest):
    """What lmcache's connector does. Subclasses move the bytes of chunks."""

    def warm_up(self) -> None:
        for number in range(PROMPTS):
            tokens = tokens_of(number)
            key = make_key(tokens, 0, len(tokens), model=self.model, request=f"warm-{number}")
            self.store(key, number, 0)

    def one_request(self, number: int) -> None:
        tokens, request = tokens_of(number), f"{self.model}-{self.random.random()}"
        self._ping()
        key = make_key(tokens, 0, len(tokens), model=self.model, request=request)
        hits = self._lookup({**key, "worker_id": None})
        if hits:
            self._load({**key, "end": hits * CHUNK}, number, hits)
        if hits < CHUNKS:
            self.store({**key, "start": hits * CHUNK}, number, hits)
        self.ask("end_session", request)

    def _ping(self) -> None:
        self._pinged = time.monotonic()
        if self.ask("ping", self.instance) is not True:
            self.sum.problems.append("its worker was forgotten")
            self.register()

    def _lookup(self, key: Any) -> int:
        began = time.monotonic()
        self.ask("lookup", key, 1)
        while (hits := self.ask("query_prefetch_status", key["request_id"])) is None:
            time.sleep(0.005)
            if time.monotonic() - self._pinged > _PING_SECONDS:
                self._ping()
        self._in_time("a lookup in L2", began, L2_SECONDS + LATE_SECONDS)
        return int(hits)

    def _load(self, key: Any, number: int, hits: int) -> None:
        loaded = self.load(key, hits)
        if len(loaded) < hits:
            self.sum.refusals.append(f"{len(loaded)} chunks of a hit of {hits} were served")
        for chunk, data in enumerate(loaded):
            self.sum.chunks += 1
            if not np.array_equal(data, kv_of(self.model, number, chunk)):
                self.sum.problems.append(f"WRONG BYTES in chunk {chunk} of prompt {number}")

    @abstractmethod
    def store(self, key: Any, number: int, first: int) -> None:
        """Store the chunks from `first` on."""

    @abstractmethod
    def load(self, key: Any, hits: int) -> list[np.ndarray]:
        """The bytes of each chunk; nothing if the server refuses."""


class HandleMode(OfLMCache):
    """The server copies, from and to blocks of this worker."""

    model, instance = HANDLE_MODEL, HANDLE_ID

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(url, seed)
        self._worker = RawWorker(self.client, self.model, self.instance)
        self.register()

    def register(self) -> None:
        self._worker.register()

    def leave(self) -> None:
        self._worker.close()

    def store(self, key: Any, number: int, first: int) -> None:
        blocks, data = self._draw_blocks(CHUNKS - first), self._worker.pool.data
        for row, chunk in enumerate(range(first, CHUNKS)):
            ids = _of_chunk(blocks, row)
            kv = kv_of(self.model, number, chunk).view(np.uint16)
            data[:, ids] = kv.reshape(data[:, ids].shape)
        if self.ask("store", key, self.instance, [blocks], EVENT)[1] is not True:
            self.sum.refusals.append("a store was refused")
        self._scribble(blocks)

    def load(self, key: Any, hits: int) -> list[np.ndarray]:
        blocks, data = self._draw_blocks(hits), self._worker.pool.data
        done = self.ask("retrieve", key, self.instance, [blocks], EVENT, 0)[1]
        copies = [
            np.ascontiguousarray(data[:, _of_chunk(blocks, row)]).view(np.uint8).ravel()
            for row in range(hits)
        ]
        self._scribble(blocks)
        return copies if done else []

    def _draw_blocks(self, chunks: int) -> list[int]:
        return self.random.sample(range(1, self._worker.pool.blocks), chunks * _BLOCKS_A_CHUNK)

    def _scribble(self, blocks: list[int]) -> None:
        """The blocks belong to somebody else from now on."""
        self._worker.pool.data[:, blocks] = self.random.randrange(2**16)


def _of_chunk(blocks: list[int], row: int) -> list[int]:
    return blocks[row * _BLOCKS_A_CHUNK : (row + 1) * _BLOCKS_A_CHUNK]


class EngineMode(OfLMCache):
    """The worker copies, from and to slots of the arena."""

    model, instance = ENGINE_MODEL, ENGINE_ID

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(url, seed)
        self.register()

    def register(self) -> None:
        fields = {"instance_id": self.instance, "model_name": self.model, "world_size": 1}
        fields |= {"block_size": 16, "num_layers": 2, "hidden_dim_size": CHUNK_BYTES // CHUNK // 4}
        fields |= {"dtype_str": "float16", "use_mla": True, "num_physical_slots": CHUNK}
        address = self.client.call("register_kv_cache_engine_driven_context", fields)
        with Path("/dev/shm", address["shm_name"].lstrip("/")).open("r+b") as file:
            self._arena = np.frombuffer(mmap.mmap(file.fileno(), address["pool_size"]), np.uint8)

    def leave(self) -> None:
        self.client.call("unregister_kv_cache_engine_driven_context", self.instance)

    def store(self, key: Any, number: int, first: int) -> None:
        context = self.ask("prepare_store", key, self.instance)["context"]
        if not context["slots"]:
            self.sum.refusals.append("slots were refused")
            return
        for slot, index in zip(context["slots"], context["chunk_indices"], strict=True):
            self._view(slot)[:] = kv_of(self.model, number, first + index)
        if self.ask("commit_store", key, self.instance, b"") is not True:
            self.sum.refusals.append("a store was refused")

    def load(self, key: Any, hits: int) -> list[np.ndarray]:
        reply = self.ask("prepare_retrieve", key, self.instance)
        copies = [self._view(slot).copy() for slot in reply["context"].get("slots", [])]
        if copies and self.ask("commit_retrieve", key, self.instance) is not True:
            self.sum.refusals.append("the end of a load was refused")
        return copies

    def _view(self, slot: Any) -> np.ndarray:
        assert slot["length"] == CHUNK_BYTES, slot
        return self._arena[slot["offset"] : slot["offset"] + slot["length"]]
