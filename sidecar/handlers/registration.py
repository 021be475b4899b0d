"""Workers come and go: registration of both kinds, unregistration, what is kept of them."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from sidecar.cache.arena import ALIGNMENT
from sidecar.engines.cuda.gpus import MapRefused
from sidecar.engines.host_memory import HostMemory
from sidecar.engines.layout import ITEM_BYTES, UnknownLayout, fingerprint
from sidecar.engines.memory import WorkerMemory
from sidecar.engines.registry import Instance, SlotShape
from sidecar.handlers.core import Core
from sidecar.handlers.mapping import Mapping
from sidecar.handlers.slots import Slots
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.messages import (
    ArenaAddress,
    BadPayload,
    EngineDrivenRegistration,
    EngineGroupInfo,
    LayoutHints,
)

log = logging.getLogger(__name__)

_MAX_WORKERS = 4096
_MAX_MAPPING = 64


class Registrations:
    """The four register and unregister operations."""

    def __init__(self, core: Core, slots: Slots) -> None:
        self._core = core
        self._slots = slots
        self._mapping: dict[int, Mapping] = {}  # the latest of each worker that is under way

    def register_handles(
        self,
        request: Request,
        instance_id: int,
        handles: list[msgspec.msgpack.Ext],
        model_name: str,
        world_size: int,
        engine_type: str,
        hints: LayoutHints,
        groups: Sequence[EngineGroupInfo] = (),
    ) -> Any:
        """Map a worker's tensors; answered when they are usable. A repeat replaces."""
        core = self._core
        self._admit(instance_id)
        try:
            self._check_mode("lmcache_driven")
            mapping = Mapping(instance_id, model_name, world_size, hints)
            mapping.describe(handles, groups)
        except (BadPayload, UnknownLayout) as error:
            self._refuse(instance_id)
            raise Refused("bad_registration", str(error)) from None
        self._mapping[instance_id] = mapping
        core.copies.submit(
            [partial(mapping.prepare, core.config.chunk_size)],
            partial(self._prepared, request, mapping),
        )
        return DEFERRED

    def register_engine_driven(
        self, request: Request, registration: EngineDrivenRegistration
    ) -> ArenaAddress:
        """Tell a worker where the arena is and remember how it views objects. A repeat replaces."""
        core, r = self._core, registration
        self._admit(r.instance_id)
        try:
            self._check_mode("engine_driven")
            view, object_bytes = _slot_shape(r, core.config.chunk_size)
        except UnknownLayout as error:
            self._refuse(r.instance_id)
            core.refusals.add(request.operation.name, "bad_registration", str(error))
            # A worker without an address would send its chunks as pickles, in vain.
            return self._address()
        identity = fingerprint(["engine-driven", core.config.chunk_size, view.shape, view.dtype])
        instance = Instance(
            r.instance_id, r.model_name, r.world_size, identity, object_bytes,
            request.client, core.now(), slot_shape=view,
        )  # fmt: skip
        self._add(instance)
        return self._address()

    def unregister(self, request: Request, instance_id: int) -> None:
        """The worker is leaving; it touches neither its memory nor our slots through us now."""
        self._mapping.pop(instance_id, None)
        instance = self._core.registry.remove(instance_id)
        if instance is not None:
            # Somebody else's word is not enough to reuse slots that it may be writing to.
            self._release(instance, gone=request.client == instance.client)

    def forget(self, instance: Instance, gone: bool = False) -> None:
        """Drop a worker that must register again. Its slots stay taken unless it is `gone`.

        What it has in flight is neither published nor reported as done.
        """
        if self._core.registry.holds(instance):
            self._core.registry.remove(instance.id)
            self._release(instance, gone)

    def forget_all(self) -> None:
        """Treat every worker as after a restart; what is cached stays."""
        self._mapping.clear()
        for instance in list(self._core.registry.instances.values()):
            self.forget(instance)
        self._core.copies.cancel_all()

    def _release(self, instance: Instance, gone: bool) -> None:
        self._slots.forget(instance, gone)
        self._retire(instance)

    def _prepared(self, request: Request, mapping: Mapping, ok: bool) -> None:
        core = self._core
        if mapping.host is not None:
            threads = core.config.max_workers
            memory = HostMemory(mapping.host, core.arena.bytes, core.copies, threads)
            self._mapped(request, mapping, memory)
        elif ok and mapping.gpu and mapping.layout and self._is_latest(mapping):
            core.gpus.map(
                mapping.gpu, mapping.instance_id, mapping.layout, mapping.memories,
                partial(self._mapped, request, mapping),
                partial(self._memory_lost, mapping.instance_id),
            )  # fmt: skip
        else:
            self._mapped(request, mapping, MapRefused(mapping.refusal, mapping.is_final))

    def _mapped(
        self, request: Request, mapping: Mapping, memory: WorkerMemory | MapRefused
    ) -> None:
        if not self._is_latest(mapping):
            if not isinstance(memory, MapRefused):
                memory.close()
            request.refuse("superseded", "a later registration, or its end, came first")
            return
        del self._mapping[mapping.instance_id]
        if isinstance(memory, MapRefused):
            self._refuse_mapping(mapping.instance_id, memory.is_final)
            request.refuse("bad_registration", memory.reason)
            return
        layout = mapping.layout
        assert layout is not None
        instance = Instance(
            mapping.instance_id, mapping.model_name, mapping.world_size,
            layout.fingerprint, layout.object_bytes,
            request.client, self._core.now(), layout=layout, memory=memory,
        )  # fmt: skip
        self._add(instance)
        request.reply(None)

    def _is_latest(self, mapping: Mapping) -> bool:
        return self._mapping.get(mapping.instance_id) is mapping

    def _memory_lost(self, instance_id: int, memory: WorkerMemory) -> None:
        """The GPU's process has been given up: the worker must register again."""
        instance = self._core.registry.instances.get(instance_id)
        if instance is not None and instance.memory is memory:
            self.forget(instance)

    def _refuse_mapping(self, instance_id: int, is_final: bool) -> None:
        if is_final:
            self._refuse(instance_id)
        elif (old := self._core.registry.remove(instance_id)) is not None:
            self._release(old, gone=False)

    def _add(self, instance: Instance) -> None:
        telemetry = self._core.telemetry
        largest = max(map(len, self._core.arena.parts))
        if instance.object_bytes > largest:
            log.warning(
                "a chunk of worker %d takes %d bytes, more than the %d of the L1: nothing is kept",
                instance.id,
                instance.object_bytes,
                largest,
            )
        self._mapping.pop(instance.id, None)
        old = self._core.registry.add(instance)
        telemetry.registrations.add(1, instance.kind)
        if old is not None:
            telemetry.re_registrations.add(1, instance.kind)
            self._retire(old)

    def _refuse(self, instance_id: int) -> None:
        self._mapping.pop(instance_id, None)
        old = self._core.registry.refuse(instance_id)
        if old is not None:
            self._release(old, gone=False)

    def _retire(self, instance: Instance) -> None:
        if instance.memory is not None:
            instance.memory.close()

    def _admit(self, instance_id: int) -> None:
        self._core.refuse_when_closing()
        instances = self._core.registry.instances
        if len(instances) >= _MAX_WORKERS and instance_id not in instances:
            raise Refused("too_many_workers", f"{len(instances)} are registered")
        if len(self._mapping) >= _MAX_MAPPING:
            raise Refused("too_many_registrations", f"{len(self._mapping)} are under way")

    def _check_mode(self, mode: str) -> None:
        supported = self._core.config.supported_transfer_mode
        if supported not in ("auto", mode):
            raise UnknownLayout(f"--supported-transfer-mode is {supported}")

    def _address(self) -> ArenaAddress:
        return ArenaAddress("/" + self._core.arena.segment.name, self._core.arena.size)


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
