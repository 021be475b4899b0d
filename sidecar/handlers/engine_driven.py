"""Engine-driven mode: the worker copies between its memory and slots of the arena.

Being late loses a worker the right to publish what it writes, not the slots that it writes to:
these are free when it says that it is done, or can touch them no more (`prepared`).
"""

from sidecar.cache.entry import Entry
from sidecar.engines.registry import Instance, shown
from sidecar.handlers.core import Core, scope_of, space_of
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.prepared import Prepared, PreparedKey, PreparedSlots
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.messages import CacheKey, Slot, retrieve_context, store_context

DEVICE = "cpu"
_PICKLE_HINT = (
    "the worker sends pickles because it cannot open the arena: "
    "mount the same /dev/shm into both containers, under one user"
)


class EngineDriven:
    """prepare_store, commit_store, prepare_retrieve, commit_retrieve."""

    def __init__(self, core: Core, eviction: Eviction) -> None:
        self._core = core
        self._eviction = eviction
        self._prepared = PreparedSlots(core.arena.size, core.attachments)

    def prepare_store(self, request: Request, key: CacheKey, instance_id: int) -> object:
        """Slots for the chunks of `[start, end)` that are to be written."""
        core = self._core
        core.trace(request, key)
        core.telemetry.num_submitted_stores.add(1, DEVICE)
        instance = core.instance(request, instance_id, key, "engine_driven")
        chunks = core.aligned_range(key)
        hashes = core.hashes(key, key.end)
        name = _name(instance_id, key, hashes)
        if self._prepared.writing(name) or not chunks:
            return store_context([], [])  # being written already, or nothing meant
        with core.transfer(instance):
            entries, indices = self._reserve(request.client, instance, key, hashes, chunks)
        if entries:
            instance.transfers += 1  # until the commit
            deadline = core.now() + core.config.l1_write_ttl_seconds
            self._prepared.add_write(Prepared(name, instance, request.client, entries, deadline))
        else:  # so no commit follows
            core.touch(space_of(key, key.worker_id or 0, instance.fingerprint), hashes)
        return store_context([_slot(instance, entry) for entry in entries], indices)

    def commit_store(self, request: Request, key: CacheKey, instance_id: int, data: bytes) -> bool:
        """Publish what the worker has written."""
        core = self._core
        span = core.trace(request, key)
        core.registry.touch(instance_id, request.client, core.now())
        hashes = core.hashes(key, key.end)
        prepared = self._prepared.writing(_name(instance_id, key, hashes))
        if prepared is None:
            # With data and without slots: it could not map the arena and sends pickles.
            raise Refused("pickle" if data else "unknown_reservation", _PICKLE_HINT if data else "")
        if prepared.client != request.client:
            raise Refused("not_owner", "prepared over another connection")
        if prepared.withdrawn or data:
            self._free([prepared])
            raise Refused("pickle" if data else "reservation_expired")
        self._prepared.remove(prepared)
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
        found = core.readable(instance, key, hashes, chunks)
        entries = [entry for entry in found if entry is not None]
        if not entries or len(entries) < len(chunks):
            core.telemetry.l1_read_failure_chunks.add(1, "l1_retrieve", "not_found", key.model_name)
            raise Refused("not_cached", f"{len(entries)} of {len(chunks)} chunks")
        prepared = Prepared(_name(instance_id, key, hashes), instance, request.client, entries)
        if not self._prepared.may_read(request.client, prepared.nbytes):
            raise Refused("too_many_slots", f"worker {shown(instance_id)} reads half of the L1")
        core.admit(instance)
        for entry in entries:
            core.l1.pin(entry)
        core.l1.journal.reading(entries)
        self._prepared.add_read(prepared)
        return retrieve_context([_slot(instance, entry) for entry in entries])

    def commit_retrieve(self, request: Request, key: CacheKey, instance_id: int) -> bool:
        """The worker has read the slots, or was told that there are none."""
        core = self._core
        core.trace(request, key)
        core.registry.touch(instance_id, request.client, core.now())
        hashes = core.hashes(key, key.end)
        start = key.start // core.config.chunk_size
        core.leases.release(
            key.request_id, scope_of(key), hashes, start, readers=1, rank=key.worker_id
        )
        prepared = self._prepared.reading(_name(instance_id, key, hashes), request.client)
        if prepared is None:
            return True
        place = space_of(key, key.worker_id or 0, prepared.instance.fingerprint)
        core.touch(place, hashes)
        self._free([prepared])
        count = len(prepared.entries)
        core.telemetry.l1_read_chunks.add(count)
        core.telemetry.num_chunks_loaded.add(
            count, str(shown(prepared.instance.id)), key.model_name, key.cache_salt
        )
        core.telemetry.num_finished_retrieves.add(1, DEVICE)
        self._count_bytes("load", prepared)
        return True

    def expire(self, now: float) -> None:
        """Writes past their limit can no longer be published; their slots stay taken."""
        for prepared in self._prepared.writes():
            if prepared.deadline <= now and not prepared.withdrawn:
                self._withdraw(prepared)
                self._core.telemetry.leases_expired.add(len(prepared.entries))

    def withdraw(self, instance_id: int) -> None:
        """A worker is not registered any more: nothing that it was storing becomes visible."""
        for prepared in self._prepared.writes():
            if prepared.instance.id == instance_id:
                self._withdraw(prepared)

    def end(self, instance_id: int, client: bytes) -> None:
        """This worker has said over `client` that it touches nothing any more."""
        self._free(self._prepared.of(instance_id, client))

    def end_disconnected(self, clients: set[bytes]) -> None:
        """These connections are gone for good: nothing that came over them becomes visible.

        What no process can touch any more is free.
        """
        lost = self._prepared.over(clients)
        for prepared in lost:
            self._withdraw(prepared)
        self._free(self._prepared.untouched(lost))

    def clients(self) -> set[bytes]:
        """The connections that have prepared slots."""
        return self._prepared.clients()

    def instances(self) -> set[int]:
        """The workers that have prepared slots."""
        return self._prepared.instances()

    def held(self) -> int:
        """Slots that workers write to or read from now."""
        return self._prepared.slots

    def _withdraw(self, prepared: Prepared) -> None:
        if prepared.is_write and not prepared.withdrawn:
            prepared.withdrawn = True
            for entry in prepared.entries:
                self._core.l1.withdraw(entry)

    def _free(self, ended: list[Prepared]) -> None:
        """Nobody touches these slots any more, and what was written to them is not published."""
        for prepared in ended:
            self._prepared.remove(prepared)
            self._withdraw(prepared)
            if not prepared.is_write:
                self._core.l1.journal.read(prepared.entries)
            let_go = self._core.l1.release_withdrawn if prepared.is_write else self._core.l1.unpin
            for entry in prepared.entries:
                let_go(entry)

    def _reserve(
        self,
        client: bytes,
        instance: Instance,
        key: CacheKey,
        hashes: list[bytes],
        chunks: range,
    ) -> tuple[list[Entry], list[int]]:
        """New slots, and which chunks of the range (counted from its start) they are for.

        Raises Refused where the connection has its share of the L1 already.
        """
        core, share = self._core, self._prepared.write_share(client)
        space_key = space_of(key, key.worker_id or 0, instance.fingerprint)
        entries: list[Entry] = []
        indices, taken = [], 0
        for index, chunk in enumerate(chunks):
            if core.l1.knows(space_key, hashes[chunk]):
                continue
            within = taken + instance.object_bytes <= share
            if not within and not entries:
                raise Refused("too_many_slots", f"worker {shown(instance.id)} has its share")
            entry = None
            if within:
                entry = core.l1.reserve(space_key, hashes[chunk], instance.object_bytes)
            if entry is None:
                core.telemetry.l1_allocation_failure_chunks.add(1, "l1_store", key.model_name)
                continue
            taken += entry.slot_bytes
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
