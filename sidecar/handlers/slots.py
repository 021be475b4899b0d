"""Engine-driven mode: the worker copies between its memory and slots of the arena.

A slot that a worker may still write to or read from is not used for anything else until it
says that it is done, or its connection is gone: being late loses it the right to publish, not
the slot.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.cache.entry import Entry
from sidecar.cache.leases import Scope
from sidecar.engines.registry import Instance
from sidecar.handlers.core import Core, scope_of, space_of
from sidecar.handlers.eviction import Eviction
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.messages import CacheKey, Slot, retrieve_context, store_context

DEVICE = "cpu"
_PICKLE_HINT = (
    "the worker sends pickles because it cannot open the arena: "
    "mount the same /dev/shm into both containers, under one user"
)
# Instance, request, scope, rank, range, and the last chunk's hash, which covers all tokens.
PreparedKey = tuple[int, str, Scope, int | None, int, int, bytes]


@dataclass(eq=False, slots=True)
class Prepared:
    """Slots that a worker works on. `withdrawn` writes can no longer be committed.

    A write is withdrawn at its `deadline`; a read has none, it ends with its worker at last.
    `client` is the connection of a worker that is not registered any more.
    """

    instance: Instance
    entries: list[Entry]
    deadline: float = math.inf
    withdrawn: bool = False
    client: bytes = b""


class Slots:
    """prepare_store, commit_store, prepare_retrieve, commit_retrieve."""

    def __init__(self, core: Core, eviction: Eviction) -> None:
        self._core = core
        self._eviction = eviction
        self._writes: dict[PreparedKey, Prepared] = {}
        self._reads: dict[PreparedKey, list[Prepared]] = {}

    def prepare_store(self, request: Request, key: CacheKey, instance_id: int) -> object:
        """Slots for the chunks of `[start, end)` that are to be written."""
        core = self._core
        core.trace(request, key)
        core.telemetry.num_submitted_stores.add(1, DEVICE)
        instance = core.instance(request, instance_id, key, "engine_driven")
        chunks = core.aligned_range(key)
        hashes = core.hashes(key, key.end)
        name = _name(instance_id, key, hashes)
        if name in self._writes or not chunks:
            return store_context([], [])  # being written already, or nothing meant
        core.admit(instance)
        entries, indices = self._reserve(instance, key, hashes, chunks)
        if not entries:  # so no commit follows
            core.l1.touch(space_of(key, key.worker_id or 0, instance.fingerprint), hashes)
            instance.transfers -= 1
            return store_context([], [])
        deadline = core.now() + core.config.l1_write_ttl_seconds
        self._writes[name] = Prepared(instance, entries, deadline)
        return store_context([_slot(instance, entry) for entry in entries], indices)

    def commit_store(self, request: Request, key: CacheKey, instance_id: int, data: bytes) -> bool:
        """Publish what the worker has written."""
        core = self._core
        span = core.trace(request, key)
        core.registry.hear(instance_id, request.client, core.now())
        hashes = core.hashes(key, key.end)
        name = _name(instance_id, key, hashes)
        prepared = self._writes.pop(name, None)
        if prepared is None:
            # With data and without slots: it could not map the arena and sends pickles.
            raise Refused("pickle" if data else "unknown_reservation", _PICKLE_HINT if data else "")
        prepared.instance.transfers -= 1
        if prepared.withdrawn or data:
            self._abandon(prepared)
            raise Refused("pickle" if data else "reservation_expired")
        place = space_of(key, key.worker_id or 0, prepared.instance.fingerprint)
        core.publish(prepared.entries, place, hashes, span)
        core.telemetry.num_finished_stores.add(1, DEVICE)
        self._count_bytes("store", prepared)
        self._eviction.check()
        return True

    def prepare_retrieve(self, request: Request, key: CacheKey, instance_id: int) -> object:
        """The slots of all chunks of `[start, end)`, readable until commit_retrieve."""
        core = self._core
        core.trace(request, key)
        core.telemetry.num_submitted_retrieves.add(1, DEVICE)
        instance = core.instance(request, instance_id, key, "engine_driven")
        chunks = core.aligned_range(key)
        hashes = core.hashes(key, key.end)
        space = core.l1.space(space_of(key, key.worker_id or 0, instance.fingerprint))
        ready = space.ready if space is not None else {}
        entries = [ready[hashes[chunk]] for chunk in chunks if hashes[chunk] in ready]
        if not entries or len(entries) < len(chunks):
            core.telemetry.l1_read_failure_chunks.add(1, "l1_retrieve", "not_found", key.model_name)
            raise Refused("not_cached", f"{len(entries)} of {len(chunks)} chunks")
        core.admit(instance)
        for entry in entries:
            core.l1.pin(entry)
        prepared = Prepared(instance, entries)
        self._reads.setdefault(_name(instance_id, key, hashes), []).append(prepared)
        return retrieve_context([_slot(instance, entry) for entry in entries])

    def commit_retrieve(self, request: Request, key: CacheKey, instance_id: int) -> bool:
        """The worker has read the slots, or was told that there are none."""
        core = self._core
        core.trace(request, key)
        core.registry.hear(instance_id, request.client, core.now())
        hashes = core.hashes(key, key.end)
        start = key.start // core.config.chunk_size
        core.leases.release(
            key.request_id, scope_of(key), hashes, start, readers=1, rank=key.worker_id
        )
        name = _name(instance_id, key, hashes)
        reads = self._reads.get(name)
        if not reads:
            return True
        prepared = reads.pop(0)
        if not reads:
            del self._reads[name]
        prepared.instance.transfers -= 1
        place = space_of(key, key.worker_id or 0, prepared.instance.fingerprint)
        core.l1.touch(place, hashes)
        self._unpin(prepared)
        count = len(prepared.entries)
        core.telemetry.l1_read_chunks.add(count)
        core.telemetry.num_chunks_loaded.add(
            count, str(instance_id), key.model_name, key.cache_salt
        )
        core.telemetry.num_finished_retrieves.add(1, DEVICE)
        self._count_bytes("load", prepared)
        return True

    def expire(self, now: float) -> None:
        """Writes past their limit can no longer be published; their slots stay taken."""
        for prepared in self._writes.values():
            if prepared.deadline <= now and not prepared.withdrawn:
                self._withdraw(prepared)
                self._core.telemetry.leases_expired.add(len(prepared.entries))

    def forget(self, instance: Instance, gone: bool) -> None:
        """A worker was unregistered or reaped: nothing it was storing becomes visible.

        Its slots are free if it is `gone`; else they wait for `release_clients`.
        """
        for prepared in self._all():
            if prepared.instance.id == instance.id:
                prepared.client = instance.client
        self._end(lambda p: p.instance.id == instance.id, gone)

    def orphaned_clients(self) -> set[bytes]:
        """The connections of workers that are not registered, but may still touch slots."""
        return {p.client for p in self._all() if p.client}

    def release_clients(self, clients: set[bytes]) -> None:
        """These connections are gone for good; who was behind them touches no slot any more."""
        self._end(lambda p: p.client in clients, gone=True)

    def held(self) -> int:
        """Slots that workers write to or read from now."""
        return sum(len(prepared.entries) for prepared in self._all())

    def _all(self) -> list[Prepared]:
        return [*self._writes.values(), *(p for reads in self._reads.values() for p in reads)]

    def _end(self, condition: Callable[[Prepared], bool], gone: bool) -> None:
        for name, prepared in list(self._writes.items()):
            if condition(prepared):
                self._withdraw(prepared)
                if gone:
                    del self._writes[name]
                    self._abandon(prepared)
        if gone:
            for name, reads in list(self._reads.items()):
                for prepared in filter(condition, list(reads)):
                    reads.remove(prepared)
                    self._unpin(prepared)
                if not reads:
                    del self._reads[name]

    def _withdraw(self, prepared: Prepared) -> None:
        if not prepared.withdrawn:
            prepared.withdrawn = True
            for entry in prepared.entries:
                self._core.l1.withdraw(entry)

    def _abandon(self, prepared: Prepared) -> None:
        """Nobody writes to these slots any more, and they are not published."""
        self._withdraw(prepared)
        for entry in prepared.entries:
            self._core.l1.release_withdrawn(entry)

    def _unpin(self, prepared: Prepared) -> None:
        for entry in prepared.entries:
            self._core.l1.unpin(entry)

    def _reserve(
        self, instance: Instance, key: CacheKey, hashes: list[bytes], chunks: range
    ) -> tuple[list[Entry], list[int]]:
        """New slots, and which chunks of the range (counted from its start) they are for."""
        core = self._core
        space_key = space_of(key, key.worker_id or 0, instance.fingerprint)
        entries, indices = [], []
        for index, chunk in enumerate(chunks):
            if core.l1.knows(space_key, hashes[chunk]):
                continue
            entry = core.l1.reserve(space_key, hashes[chunk], instance.object_bytes)
            if entry is None:
                core.telemetry.l1_allocation_failure_chunks.add(1, "l1_store", key.model_name)
                continue
            entries.append(entry)
            indices.append(index)
        return entries, indices

    def _count_bytes(self, direction: str, prepared: Prepared) -> None:
        moved = len(prepared.entries) * prepared.instance.object_bytes
        self._core.telemetry.transfer_bytes.add(moved, direction, DEVICE)


def _name(instance_id: int, key: CacheKey, hashes: list[bytes]) -> PreparedKey:
    last = hashes[-1] if hashes else b""
    scope = scope_of(key)
    return instance_id, key.request_id, scope, key.worker_id, key.start, key.end, last


def _slot(instance: Instance, entry: Entry) -> Slot:
    view = instance.slot_shape
    assert view is not None
    return Slot(entry.offset, entry.size, list(view.shape), view.dtype)
