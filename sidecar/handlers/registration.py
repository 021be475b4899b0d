"""Workers come and go: registration of both kinds, unregistration, what is kept of them."""

import logging
import math
from collections.abc import Sequence
from functools import partial

import msgspec

from sidecar.cache.arena import ALIGNMENT
from sidecar.engines.cuda.gpu_memory import GpuMemory
from sidecar.engines.cuda.gpus import MapRefused
from sidecar.engines.host_memory import HostMemory
from sidecar.engines.layout import ITEM_BYTES, UnknownLayout, fingerprint
from sidecar.engines.registry import Instance, SlotShape, shown
from sidecar.engines.worker_memory import WorkerMemory
from sidecar.flow import Outcome, called_back
from sidecar.handlers.core import Core
from sidecar.handlers.engine_driven import EngineDriven
from sidecar.handlers.pending_registration import PendingRegistration
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.generations import Generation
from sidecar.wire.messages import (
    ArenaAddress,
    EngineDrivenRegistration,
    EngineGroupInfo,
    LayoutHints,
)

log = logging.getLogger(__name__)

_MAX_WORKERS = 4096
# A stock client has one; many of them must not keep others out.
_MAX_WORKERS_A_CONNECTION = 16
_MAX_PENDING = 64


class Registrations:
    """The four register and unregister operations."""

    def __init__(self, core: Core, engine_driven: EngineDriven) -> None:
        self._core = core
        self._engine_driven = engine_driven
        self._pending: dict[int, PendingRegistration] = {}  # the latest of each worker

    async def register_handles(
        self,
        request: Request,
        instance_id: int,
        handles: list[msgspec.msgpack.Ext],
        model_name: str,
        world_size: int,
        engine_type: str,
        hints: LayoutHints,
        groups: Sequence[EngineGroupInfo] = (),
    ) -> None:
        """Map a worker's tensors; answered when they are usable. A repeat replaces."""
        core = self._core
        self._admit(request, instance_id)
        pending = PendingRegistration(instance_id, request.client, model_name, world_size, hints)
        try:
            self._check_mode("lmcache_driven")
            _check_groups(request.generation, groups)
        except UnknownLayout as error:
            self._refuse(instance_id, request.client)
            raise Refused("bad_registration", str(error)) from None
        self._pending[instance_id] = pending
        prepare = partial(pending.prepare, handles, groups, core.config.chunk_size)
        prepared = await called_back(partial(core.copies.submit, [prepare]))
        imports_events = not request.generation.takes_empty_event
        memory = await self._map(pending, prepared, imports_events)
        if self._pending.get(instance_id) is not pending:
            if not isinstance(memory, MapRefused):
                memory.close()
            raise Refused("superseded", "superseded by a later registration or unregistration")
        del self._pending[instance_id]
        if isinstance(memory, MapRefused):
            if memory.is_final:
                self._refuse(instance_id, request.client)
            elif (old := core.registry.remove(instance_id)) is not None:
                self._release(old)
            raise Refused("bad_registration", memory.reason)
        if memory.on_gpu and imports_events and memory.done_event is None:
            # Its client ends the engine over the first answer without an event.
            memory.close()
            self._refuse(instance_id, request.client)
            raise Refused("bad_registration", "the GPU's driver shares no events")
        layout = pending.layout
        assert layout is not None
        instance = Instance(
            instance_id, model_name, world_size, layout.fingerprint, layout.object_bytes,
            request.client, core.now(), layout=layout, memory=memory,
        )  # fmt: skip
        self._add(request, instance)

    async def _map(
        self, pending: PendingRegistration, prepared: bool, imports_events: bool
    ) -> WorkerMemory | MapRefused:
        """The worker's memory, mapped by us or by the process of its GPU."""
        core = self._core
        if pending.host is not None:
            threads = core.config.max_workers
            return HostMemory(pending.host, core.arena.bytes, core.copies, threads)
        is_latest = self._pending.get(pending.instance_id) is pending
        if not (prepared and is_latest and pending.gpu and pending.layout):
            return MapRefused(pending.refusal, pending.is_final)
        core.l1.journal.shared()  # with the GPU's process
        mapped: Outcome[GpuMemory | MapRefused] = Outcome()
        core.gpus.map(
            pending.gpu, pending.instance_id, pending.layout, pending.memories, mapped.set,
            partial(self._memory_lost, pending.instance_id), imports_events,
        )  # fmt: skip
        return await mapped

    def register_engine_driven(
        self, request: Request, registration: EngineDrivenRegistration
    ) -> ArenaAddress:
        """Tell a worker where the arena is and remember how it views objects. A repeat replaces."""
        core, r = self._core, registration
        # Refused with the address: a worker without it would send its chunks as pickles, in vain.
        elsewhere = ArenaAddress("/" + core.arena.segment.name, core.arena.size)
        try:
            self._admit(request, r.instance_id)
        except Refused as refusal:
            core.l1.journal.shared()
            core.refusals.add(request.operation.name, refusal.reason, str(refusal))
            return elsewhere
        try:
            self._check_mode("engine_driven")
            view, object_bytes = _slot_shape(r, core.config.chunk_size)
        except UnknownLayout as error:
            core.l1.journal.shared()
            self._refuse(r.instance_id, request.client)
            core.refusals.add(request.operation.name, "bad_registration", str(error))
            return elsewhere
        identity = fingerprint(["engine-driven", core.config.chunk_size, view.shape, view.dtype])
        instance = Instance(
            r.instance_id, r.model_name, r.world_size, identity, object_bytes,
            request.client, core.now(), slot_shape=view,
        )  # fmt: skip
        self._add(request, instance)
        return ArenaAddress("/" + core.arena_name(r.instance_id), core.arena.size)

    def unregister(self, request: Request, instance_id: int) -> None:
        """The worker is leaving; it touches neither its memory nor our slots through us now."""
        self._check_owner(request, instance_id)
        self._pending.pop(instance_id, None)
        instance = self._core.registry.remove(instance_id)
        if instance is not None:
            self._release(instance)
        self._engine_driven.end(instance_id, request.client)

    def forget(self, instance: Instance) -> None:
        """Drop a worker that must register again; its slots stay taken until they are let go of.

        What it has in flight is neither published nor reported as done.
        """
        if self._core.registry.holds(instance):
            self._core.registry.remove(instance.id)
            self._release(instance)

    def forget_client(self, client: bytes) -> set[str]:
        """Drop the workers that this connection speaks for; the names of their models."""
        instances = self._core.registry.instances.values()
        owned = [instance for instance in instances if instance.client == client]
        for instance in owned:
            self.forget(instance)
        return {instance.model_name for instance in owned}

    def forget_all(self) -> None:
        """Treat every worker as after a restart; what is cached stays."""
        self._pending.clear()
        for instance in list(self._core.registry.instances.values()):
            self.forget(instance)
        self._core.copies.cancel_all()

    def _release(self, instance: Instance) -> None:
        self._engine_driven.withdraw(instance.id)
        self._retire(instance)

    def _memory_lost(self, instance_id: int, memory: WorkerMemory) -> None:
        """The GPU's process has been given up: the worker must register again."""
        instance = self._core.registry.instances.get(instance_id)
        if instance is not None and instance.memory is memory:
            self.forget(instance)

    def _add(self, request: Request, instance: Instance) -> None:
        telemetry = self._core.telemetry
        largest = max(map(len, self._core.arena.parts))
        if instance.object_bytes > largest:
            log.warning(
                "a chunk of worker %d takes %d bytes, more than the %d of the L1: nothing is kept",
                shown(instance.id),
                instance.object_bytes,
                largest,
            )
        instance.releases = request.generation.releases
        request.worker_registered(instance.id)
        self._pending.pop(instance.id, None)
        old = self._core.registry.add(instance)
        telemetry.registrations.add(1, instance.kind)
        if old is not None:
            telemetry.re_registrations.add(1, instance.kind)
            self._retire(old)

    def _refuse(self, instance_id: int, client: bytes) -> None:
        self._pending.pop(instance_id, None)
        old = self._core.registry.refuse(instance_id, client)
        if old is not None:
            self._release(old)

    def _retire(self, instance: Instance) -> None:
        if instance.memory is not None:
            instance.memory.close()

    def _admit(self, request: Request, instance_id: int) -> None:
        """Raises Refused if there is no room for it, or somebody else has this id."""
        core, client = self._core, request.client
        core.refuse_when_closing()
        self._check_owner(request, instance_id)
        if instance_id not in core.registry.instances:
            owned = core.registry.owned(client)
            if owned + self._under_way(client) >= _MAX_WORKERS_A_CONNECTION:
                raise Refused("too_many_workers", f"{owned} are registered over this connection")
            if len(core.registry.instances) >= _MAX_WORKERS:
                raise Refused("too_many_workers", f"{_MAX_WORKERS} are registered")
        if len(self._pending) >= _MAX_PENDING:
            raise Refused("too_many_registrations", f"{len(self._pending)} are under way")

    def _check_owner(self, request: Request, instance_id: int) -> None:
        """Raises Refused if another connection speaks for this worker, or registers it now."""
        try:
            self._core.speaker(request, instance_id)
        except Refused:
            self._core.registry.contest(instance_id)
            raise
        pending = self._pending.get(instance_id)
        if pending is None or pending.client == request.client:
            return
        if request.is_connected(pending.client):
            raise Refused("not_owner", f"worker {shown(instance_id)} is being registered")

    def _under_way(self, client: bytes) -> int:
        return sum(pending.client == client for pending in self._pending.values())

    def _check_mode(self, mode: str) -> None:
        supported = self._core.config.supported_transfer_mode
        if supported not in ("auto", mode):
            raise UnknownLayout(f"--supported-transfer-mode is {supported}")


def _check_groups(generation: Generation, groups: Sequence[EngineGroupInfo]) -> None:
    """Raises UnknownLayout for groups of which an older client does not say what they hold.

    Recurrent state looks like KV there, and what is stored of it is no prefix's: hits of hybrid
    models gave wrong tokens.
    """
    several = len({group.engine_group_id for group in groups}) > 1
    if several and not generation.counts_readers:
        raise UnknownLayout(
            f"lmcache {generation.releases} does not say which KV groups are recurrent: "
            "a model with several needs lmcache 0.5.5 or newer"
        )


def _slot_shape(r: EngineDrivenRegistration, chunk_size: int) -> tuple[SlotShape, int]:
    """The view that this worker has of an object, and the object's size in bytes."""
    item = ITEM_BYTES.get(r.dtype_str)
    if item is None or ALIGNMENT % item:
        raise UnknownLayout(f"unknown dtype {r.dtype_str!r}")
    slots = r.num_physical_slots or chunk_size
    planes = () if r.use_mla else (2,)
    shape = (*planes, r.num_layers, slots, r.hidden_dim_size)
    view = SlotShape(shape, r.dtype_str, r.block_size, r.num_layers, r.use_mla)
    return view, math.prod(shape) * item
