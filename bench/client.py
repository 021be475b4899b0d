"""One vLLM-like worker made of the stock client classes: its KV blocks and its requests."""

from __future__ import annotations

import gc
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zmq
from lmcache.utils import EngineType
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.group_view import EngineGroupInfo
from lmcache.v1.multiprocess.transfer_context import create_transfer_context
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from bench.common import BenchError

TIMEOUT = 60.0
CLOSE_TIMEOUT = 5.0
BLOCK_TOKENS = 16
CHUNK_TOKENS = 256
VOCABULARY = 150_000


@dataclass(frozen=True)
class Layout:
    """fp16 layers of shape (2, blocks, 16, heads, head_size), one tensor a layer."""

    name: str
    layers: int
    heads: int
    head_size: int
    blocks: int

    def nbytes(self, tokens: int) -> int:
        return tokens * self.layers * 2 * self.heads * self.head_size * 2


LARGE = Layout("large", layers=32, heads=8, head_size=128, blocks=512)  # 128 KiB a token
# One rank of eight of the same model: 16 KiB a token, 4 MiB a chunk.
SMALL = Layout("small", layers=32, heads=1, head_size=128, blocks=256)
POINT = Layout("point", layers=1, heads=1, head_size=4, blocks=16_385)  # 4 KiB a chunk
TINY = Layout("tiny", layers=1, heads=1, head_size=8, blocks=16_385)  # 32 B a token


class Pool:
    """The paged KV blocks of one worker, filled with random bytes."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._random = np.random.default_rng(secrets.randbits(64))
        self.tensors = {f"layer.{i}": self._random_layer() for i in range(layout.layers)}

    def _random_layer(self) -> torch.Tensor:
        shape = (2, self.layout.blocks, BLOCK_TOKENS, self.layout.heads, self.layout.head_size)
        words = self._random.integers(0, 2**63, size=math.prod(shape) // 4, dtype=np.int64)
        return torch.from_numpy(words).view(torch.float16).view(shape)

    def block_lists(self, tokens: int, count: int) -> list[tuple[list[int], list[int]]]:
        """`count` pairs of random block ids, long enough for `tokens`: to store and to fill.

        No block to fill is one to store in any pair, so what was stored can be compared later.
        Block 0 is in none, as with vLLM: it stands for no block.
        """
        need = tokens // BLOCK_TOKENS
        halves = np.array_split(1 + self._random.permutation(self.layout.blocks - 1), 2)
        assert need <= len(halves[1]), f"{self.layout.name} has too few blocks for {tokens} tokens"
        return [
            (
                self._random.permutation(halves[0])[:need].tolist(),
                self._random.permutation(halves[1])[:need].tolist(),
            )
            for _ in range(count)
        ]

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, VOCABULARY, size=count).tolist())

    def check_equal(self, source: list[int], target: list[int]) -> None:
        """Raises BenchError unless both block lists hold the same bytes in every layer."""
        for name, words in self._blocks_second():
            if not torch.equal(words[:, source], words[:, target]):
                raise BenchError(f"{self.layout.name}: {name} came back with other bytes")

    def _blocks_second(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The layers as integers, whose second axis counts blocks."""
        for name, tensor in self.tensors.items():
            yield name, tensor.view(torch.int16)

    def close(self) -> None:
        """Drops the tensors; the stock client unlinks their shared memory with them."""
        self.tensors.clear()
        gc.collect()


@dataclass(frozen=True)
class Request:
    """One prompt: every operation on it carries the same tokens and request id."""

    tokens: tuple[int, ...]
    request_id: str


class Worker:
    """A registered instance; `mode` is "lmcache_driven" (handle) or "engine_driven"."""

    def __init__(self, url: str, pool: Pool, mode: str = "lmcache_driven") -> None:
        self.pool = pool
        self.instance_id = secrets.randbits(62)
        self._zmq = zmq.Context()
        self._zmq.setsockopt(zmq.LINGER, 0)
        self.rpc = RequestClientFactory.create(url, context=self._zmq)
        self._context: Any = create_transfer_context(
            pool.tensors, mode=mode, instance_id=self.instance_id, req_client=self.rpc
        )
        try:
            self._register()
        except BaseException:
            self.close()
            raise

    def _register(self) -> None:
        if self.rpc.get_chunk_size().result(TIMEOUT) != CHUNK_TOKENS:
            raise BenchError(f"the server's chunk size is not {CHUNK_TOKENS}")
        group = EngineGroupInfo(
            engine_group_id=0,
            layer_indices=tuple(range(self.pool.layout.layers)),
            tokens_per_block=BLOCK_TOKENS,
        )
        self._context.register(
            self.pool.tensors,
            self._model,
            1,
            CHUNK_TOKENS // BLOCK_TOKENS,
            TIMEOUT,
            layout_hints={"kv_layout": "NHD"},
            engine_group_infos=[group],
            engine_type=EngineType.VLLM,
        )

    @property
    def _model(self) -> str:
        return f"bench-{self.pool.layout.name}"

    def request(self, tokens: tuple[int, ...]) -> Request:
        return Request(tokens, f"bench-{secrets.token_hex(8)}")

    def key(self, request: Request, worker_id: int | None = 0) -> Any:
        return IPCCacheServerKey(
            model_name=self._model,
            world_size=1,
            worker_id=worker_id,
            token_ids=request.tokens,
            start=0,
            end=len(request.tokens),
            request_id=request.request_id,
            num_kv_readers=1,
        )

    def store(self, request: Request, blocks: list[int]) -> float:
        """Stores the whole request; returns seconds."""
        return self._transfer("store", request, blocks)

    def retrieve(self, request: Request, blocks: list[int]) -> float:
        """Retrieves the whole request into `blocks`; returns seconds."""
        return self._transfer("retrieve", request, blocks)

    def submit(self, what: str, request: Request, blocks: list[int]) -> Any:
        """Begins to store or retrieve the whole request; returns the client's future."""
        return getattr(self._context, f"submit_{what}")(
            request.request_id,
            self.key(request),
            self.pool.tensors,
            [blocks],
            self._context.create_recorded_event(),
            CHUNK_TOKENS // BLOCK_TOKENS,
        )

    def _transfer(self, what: str, request: Request, blocks: list[int]) -> float:
        start = time.perf_counter()
        done = self.submit(what, request, blocks).result(TIMEOUT)
        seconds = time.perf_counter() - start
        if not done:
            raise BenchError(f"the server refused to {what} {len(request.tokens)} tokens")
        return seconds

    def lookup(self, request: Request, pause: float = 0.0) -> tuple[float, int]:
        """One lookup, asked every `pause` seconds whether it is done.

        Returns seconds, and the chunks hit (locked for reading).
        """
        key = self.key(request, worker_id=None)
        start = time.perf_counter()
        self.rpc.lookup(key, 1).result(TIMEOUT)
        while (hit := self.rpc.query_prefetch_status(request.request_id).result(TIMEOUT)) is None:
            time.sleep(pause)
        return time.perf_counter() - start, hit

    def lock(self, request: Request) -> None:
        """Looks up until everything is a hit: the stock server may publish after its reply."""
        if not self.try_lock(request, TIMEOUT):
            raise BenchError("not all chunks were found after a store")

    def try_lock(self, request: Request, limit: float) -> bool:
        """The same for at most `limit` seconds; whether everything is locked."""
        want = len(request.tokens) // CHUNK_TOKENS
        deadline = time.monotonic() + limit
        while (hit := self.lookup(request)[1]) != want:
            self.free(request, hit)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def free(self, request: Request, chunks: int) -> None:
        """Gives back the read locks of a lookup that hit `chunks`, and ends the request."""
        if chunks:
            tokens = request.tokens[: chunks * CHUNK_TOKENS]
            hit = Request(tokens, request.request_id)
            self.rpc.free_lookup_locks(self.key(hit, worker_id=None), 1).result(TIMEOUT)
        self.end(request)

    def end(self, request: Request) -> None:
        self.rpc.end_session(request.request_id).result(TIMEOUT)

    def clear(self) -> None:
        """Empties the server's L1, so that the next stores go into pages already touched."""
        self.rpc.clear(True).result(TIMEOUT)

    def close(self) -> None:
        """Unregisters, unless the server no longer answers, and closes the connection."""
        future = self._context.unregister()
        if future is not None:
            future.wait(CLOSE_TIMEOUT)
        self._context.close()
        self.rpc.close()
        self._zmq.term()
