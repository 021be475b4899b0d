"""The stock 0.5.6 client classes behind two small drivers: a worker and a scheduler."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("LMCACHE_DISABLE_BANNER", "1")
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")

# First, because it skips the test module where torch or lmcache is absent.
from tests.support.layouts import KVCache  # isort: skip

from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.transfer_context import (
    EngineDrivenContextShm,
    EngineDrivenTransferContext,
    create_transfer_context,
)
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

TIMEOUT = 60.0
HANDLE, ENGINE = "lmcache_driven", "engine_driven"
MODES = (HANDLE, ENGINE)
Blocks = Sequence[Sequence[int]]


def tokens_of(seed: int, count: int) -> tuple[int, ...]:
    """`count` random token ids."""
    return tuple(random.Random(seed).choices(range(128_000), k=count))


class Peer:
    """A connection that makes keys for one model."""

    def __init__(self, url: str, model: str, *, world: int = 1, readers: int = 1) -> None:
        self.model, self.world, self.readers = model, world, readers
        self.rpc = RequestClientFactory.create(url)
        self.rpc.get_chunk_size().result(timeout=30)  # what every stock adapter asks first

    def key(
        self,
        tokens: Sequence[int],
        start: int,
        end: int,
        request: str | None = None,
        *,
        worker: int | None = None,
        salt: str = "",
    ) -> IPCCacheServerKey:
        """The key of [start, end); without a `request` id, one that these tokens always have."""
        return IPCCacheServerKey(
            model_name=self.model,
            world_size=self.world,
            worker_id=worker,
            token_ids=tuple(tokens),
            start=start,
            end=end,
            request_id=request or f"{self.model}-{tokens[0] if tokens else None}",
            cache_salt=salt,
            num_kv_readers=self.readers,
        )

    def ping(self, instance: int | None = None) -> bool:
        return bool(self.rpc.ping(instance).result(timeout=TIMEOUT))

    def close(self) -> None:
        self.rpc.close()


class Scheduler(Peer):
    """What the connector's scheduler side sends."""

    last = ""  # the request id of the latest lookup

    def lookup(self, tokens: Sequence[int], request: str | None = None, *, salt: str = "") -> int:
        """Chunks found, once the server knows."""
        self.begin_lookup(tokens, request, salt=salt)
        end = time.monotonic() + TIMEOUT
        while (found := self.query(self.last)) is None:
            assert time.monotonic() < end, "the lookup never ended"
            time.sleep(0.01)
        return found

    def begin_lookup(
        self, tokens: Sequence[int], request: str | None = None, *, salt: str = ""
    ) -> None:
        """A lookup whose result is left to be queried."""
        key = self.key(tokens, 0, len(tokens), request, salt=salt)
        self.last = key.request_id
        self.rpc.lookup(key, self.world).result(timeout=TIMEOUT)

    def query(self, request: str) -> int | None:
        found = self.rpc.query_prefetch_status(request).result(timeout=TIMEOUT)
        return None if found is None else int(found)

    def free(
        self,
        tokens: Sequence[int],
        start: int,
        end: int,
        request: str | None = None,
        *,
        salt: str = "",
    ) -> None:
        """Give back the read locks of [start, end)."""
        key = self.key(tokens, start, end, request, salt=salt)
        self.rpc.free_lookup_locks(key, self.world).result(timeout=TIMEOUT)

    def end(self, request: str | None = None) -> None:
        """End a request, the one of the latest lookup if none is named."""
        self.rpc.end_session(request or self.last).result(timeout=TIMEOUT)

    def clear(self, force: bool = False) -> None:
        self.rpc.clear(force).result(timeout=TIMEOUT)


class Worker(Peer):
    """One worker process's connection, cache and transfer context."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: KVCache,
        mode: str = HANDLE,
        *,
        rank: int = 0,
        world: int = 1,
        readers: int = 1,
        chunk: int,
    ) -> None:
        super().__init__(url, model, world=world, readers=readers)
        self.cache, self.mode, self.rank = cache, mode, rank
        self.instance = random.SystemRandom().getrandbits(63)
        self.blocks_per_chunk = chunk // cache.groups[0].tokens_per_block
        self.context = create_transfer_context(
            cache.tensors, instance_id=self.instance, req_client=self.rpc, mode=mode
        )

    def register(self) -> None:
        self.context.register(
            self.cache.tensors,
            self.model,
            self.world,
            self.blocks_per_chunk,
            TIMEOUT,
            layout_hints=self.cache.hints,
            engine_group_infos=self.cache.infos(),
        )
        if isinstance(self.context, EngineDrivenTransferContext):
            inner = self.context.engine_driven_context
            assert isinstance(inner, EngineDrivenContextShm), "the server offered no shared memory"

    def store(
        self,
        tokens: Sequence[int],
        blocks: Blocks,
        *,
        start: int = 0,
        end: int | None = None,
        request: str | None = None,
        salt: str = "",
    ) -> bool:
        """Store [start, end) from `blocks` (one list a group)."""
        return bool(self.begin_store(tokens, blocks, start, end, request, salt).result(TIMEOUT))

    def begin_store(
        self,
        tokens: Sequence[int],
        blocks: Blocks,
        start: int = 0,
        end: int | None = None,
        request: str | None = None,
        salt: str = "",
    ) -> Any:
        """The future of a store."""
        stop = len(tokens) if end is None else end
        key = self.key(tokens, start, stop, request, worker=self.rank, salt=salt)
        return self.context.submit_store(
            key.request_id,
            key,
            self.cache.tensors,
            [list(ids) for ids in blocks],
            self.context.create_recorded_event(),
            self.blocks_per_chunk,
        )

    def retrieve(
        self,
        tokens: Sequence[int],
        blocks: Blocks,
        *,
        start: int = 0,
        end: int | None = None,
        request: str | None = None,
        salt: str = "",
        skip: int = 0,
    ) -> bool:
        """Bring [start, end) into `blocks` (one list a group)."""
        stop = len(tokens) if end is None else end
        key = self.key(tokens, start, stop, request, worker=self.rank, salt=salt)
        future = self.context.submit_retrieve(
            key.request_id,
            key,
            self.cache.tensors,
            [list(ids) for ids in blocks],
            self.context.create_recorded_event(),
            self.blocks_per_chunk,
            skip_first_n_tokens=skip,
        )
        return bool(future.result(TIMEOUT))

    def unregister(self) -> None:
        future = self.context.unregister()
        if future is not None:
            future.result(timeout=TIMEOUT)

    def close(self) -> None:
        self.unregister()
        self.context.close()
        super().close()
