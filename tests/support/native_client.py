"""Both halves of an engine at the native door, made of our client's parts, without vLLM's own.

The order of the calls is vLLM's; the worker's tensors are small.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

import torch
import zmq
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
    LookupResult,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)

from connectors.native import wire
from connectors.native.arena import Arenas
from connectors.native.connection import Dealer
from connectors.native.cpu_worker import CpuWorker
from connectors.native.geometry import Geometry
from connectors.native.manager import SidecarOffloadingManager
from connectors.native.membership import Membership
from tests.support.native import block_hash
from tests.support.server import Server, wait_until

PAGE, CHUNKS = 6000, 6
GEOMETRY = Geometry(1, PAGE, 1, 0)
HIT, MISS = LookupResult.HIT, LookupResult.MISS
NEW = [MISS] * CHUNKS
FOUND = [HIT] * CHUNKS
HASHES = [block_hash(number) for number in range(CHUNKS)]


class Engine:
    """A scheduler's manager and one worker, in one process, with blocks for CHUNKS chunks."""

    def __init__(self, url: str, identity: bytes, seed: int, events: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.kv = random.integers(-128, 128, (2 * CHUNKS, PAGE), np.int8)
        caches = CanonicalKVCaches(
            [CanonicalKVCacheTensor(torch.from_numpy(self.kv), PAGE)],
            [[CanonicalKVCacheRef(0, PAGE)], [CanonicalKVCacheRef(0, PAGE)]],
        )
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        name, incarnation = secrets.token_hex(8), secrets.token_bytes(16)
        size = GEOMETRY.object_bytes

        def connect() -> Dealer:
            return Dealer(context, url)

        join = wire.Join(
            engine=name, incarnation=incarnation, rank=0, ranks=1, object_bytes=size,
            layout=bytes(32),
        )  # fmt: skip
        attach = wire.Attach(
            engine=name, incarnation=incarnation, model="m", ranks=1, groups=2, object_bytes=size,
            chunk_tokens=16, identity=identity, events=events,
        )  # fmt: skip
        self.attach, arenas = attach, Arenas()
        membership = Membership(join, arenas, connect)
        membership.start()
        self.worker = CpuWorker(caches, GEOMETRY, arenas, membership)
        self.manager = SidecarOffloadingManager(lambda: attach, connect, size, 5.0)
        self._count = 0

    def request(
        self, group: int = 0, hashes: Sequence[bytes] = HASHES
    ) -> tuple[ReqContext, list[bytes]]:
        self._count += 1
        context = ReqContext(req_id=f"request {self._count}")
        keys = [make_offload_key(each, group) for each in hashes]
        for chunk, key in enumerate(keys):
            context.set_offload_key_position(key, 16 * (chunk + 1))
        self.manager.on_new_request(context)
        return context, keys

    def end_step(self, *scheduled: str) -> None:
        self.manager.on_schedule_end(ScheduleEndContext(scheduled, ()))

    def look_up(self, context: ReqContext, keys: list[bytes]) -> list[LookupResult]:
        """As soon as all is known."""
        found: list[LookupResult] = []

        def known() -> bool:
            found[:] = [self.manager.lookup(key, context) for key in keys]
            self.end_step()
            return not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(found)

        wait_until(known, "the lookup is answered")
        return found

    def find(self, hashes: Sequence[bytes] = HASHES) -> list[LookupResult]:
        context, keys = self.request(hashes=hashes)
        found = self.look_up(context, keys)
        self.manager.on_request_finished(context)
        return found

    def store(self, group: int = 0, hashes: Sequence[bytes] = HASHES) -> None:
        context, keys = self.request(group, hashes)
        self.end_step(context.req_id)
        wait_until(self._has_slots, "slots are reserved")
        output = self.manager.prepare_store(keys, context)
        assert output is not None and output.keys_to_store == keys
        blocks = list(range(CHUNKS))
        self._copy(1, self.worker.submit_store, self._spec(blocks, group), output.store_spec)
        self.manager.complete_store(set(keys), context)
        self.manager.on_request_finished(context)

    def load(self) -> None:
        """All chunks, into the second half of the blocks."""
        context, keys = self.request()
        assert self.look_up(context, keys) == FOUND
        spec = self.manager.prepare_load(keys, context)
        blocks = list(range(CHUNKS, 2 * CHUNKS))
        self._copy(2, self.worker.submit_load, spec, self._spec(blocks, 0))
        self.manager.complete_load(set(keys), context)
        self.manager.on_request_finished(context)

    def close(self) -> None:
        self.manager.shutdown()
        self.worker.shutdown()

    def _has_slots(self) -> bool:
        self.end_step()
        return len(self.manager._stores._pool) >= CHUNKS

    def _spec(self, blocks: list[int], group: int) -> GPULoadStoreSpec:
        sizes = [0, 0]
        sizes[group] = len(blocks)
        return GPULoadStoreSpec(blocks, sizes, [0, 0])

    def _copy(self, job: int, submit: Callable[..., bool], *specs: object) -> None:
        assert submit(job, *specs)
        self.worker.wait({job})
        [result] = self.worker.get_finished()
        assert result.success


@contextmanager
def engine_at(server: Server, identity: bytes, seed: int = 1) -> Iterator[Engine]:
    """It is ready: its first lookup is answered."""
    engine = Engine(server.url, identity, seed)
    try:
        wait_until(lambda: is_ready(engine, server), "the engine is ready")
        yield engine
    finally:
        engine.close()


def is_ready(engine: Engine, server: Server) -> bool:
    engine.end_step()
    return any(each["ready"] for each in server.status()["engines"]) and bool(
        engine.manager._session.usable
    )
