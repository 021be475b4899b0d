"""Workers come and go: registration of both kinds, unregistration, what is kept of them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from sidecar.cache.arena import ALIGNMENT
from sidecar.engines.groups import GroupSpec, WorkerLayout, worker_layout
from sidecar.engines.host import HostWorker
from sidecar.engines.layout import (
    ITEM_BYTES,
    LayerLayout,
    TensorSpec,
    UnknownLayout,
    fingerprint,
    layer_layout,
)
from sidecar.engines.mapping import SegmentRefused
from sidecar.engines.registry import Instance, SlotShape
from sidecar.handlers.core import Core
from sidecar.handlers.slots import Slots
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.ipc import CpuShmTensor, decode_tensor
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
_MAX_PLANES = 16_384  # of one worker, over all tensors


@dataclass(slots=True)
class _Mapping:
    """What a copy thread makes of a registration: a mapped worker, or why there is none."""

    instance_id: int
    model_name: str
    world_size: int
    layout: WorkerLayout | None = None
    host: HostWorker | None = None
    refusal: str = "mapping failed"
    is_final: bool = False  # no repetition would help: the layout itself is the reason


class Registrations:
    """The four register and unregister operations."""

    def __init__(self, core: Core, slots: Slots) -> None:
        self._core = core
        self._slots = slots
        self._mapping: dict[int, _Mapping] = {}  # the latest of each worker that is under way

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
            tensors = [decode_tensor(handle) for handle in handles]
            specs = [_group_spec(info) for info in groups]
        except (BadPayload, UnknownLayout) as error:
            self._refuse(instance_id)
            raise Refused("bad_registration", str(error)) from None
        mapping = _Mapping(instance_id, model_name, world_size)
        self._mapping[instance_id] = mapping
        core.copies.submit(
            [partial(_map_worker, mapping, tensors, hints, specs, core.config.chunk_size)],
            partial(self._mapped, request, mapping),
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

    def _mapped(self, request: Request, mapping: _Mapping, ok: bool) -> None:
        if self._mapping.get(mapping.instance_id) is not mapping:
            request.refuse("superseded", "a later registration, or its end, came first")
            return
        del self._mapping[mapping.instance_id]
        layout = mapping.layout
        if not ok or layout is None:
            self._refuse_mapping(mapping)
            request.refuse("bad_registration", mapping.refusal)
            return
        instance = Instance(
            mapping.instance_id, mapping.model_name, mapping.world_size,
            layout.fingerprint, layout.object_bytes,
            request.client, self._core.now(), layout=layout, host=mapping.host,
        )  # fmt: skip
        self._add(instance)
        request.reply(None)

    def _refuse_mapping(self, mapping: _Mapping) -> None:
        if mapping.is_final:
            self._refuse(mapping.instance_id)
        elif (old := self._core.registry.remove(mapping.instance_id)) is not None:
            self._release(old, gone=False)

    def _add(self, instance: Instance) -> None:
        telemetry = self._core.telemetry
        if instance.object_bytes > self._core.arena.size:
            log.warning(
                "a chunk of worker %d takes %d bytes, more than the L1: nothing of it is kept",
                instance.id,
                instance.object_bytes,
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
        """Drop a worker's mapping on a copy thread, after the copies that use it.

        Unmapping gigabytes takes a while, and the loop has no time.
        """
        if instance.host is not None:
            mappings = [instance.host]
            self._core.copies.submit([mappings.clear], lambda ok: None)

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


def _group_spec(info: EngineGroupInfo) -> GroupSpec:
    if info.recurrent_state:
        raise UnknownLayout("recurrent-state groups are not supported")
    window = info.sw_size_tokens if info.sw_size_tokens > 0 else None
    return GroupSpec(tuple(info.layer_indices), info.tokens_per_block, window)


def _map_worker(
    mapping: _Mapping,
    tensors: list[CpuShmTensor],
    hints: LayoutHints,
    specs: list[GroupSpec],
    chunk_size: int,
) -> None:
    """Fill `mapping`. Runs on a copy thread: segments may be large."""
    try:
        layers: list[LayerLayout] = []
        planes = 0
        for i, tensor in enumerate(tensors):
            layers.append(_layer(i, tensor, hints))
            planes += len(layers[-1].planes)
            if planes > _MAX_PLANES:
                raise UnknownLayout("the tensors lie in too many pieces")
        mapping.layout = worker_layout(layers, specs, chunk_size)
        names = [tensor.shm_name for tensor in tensors]
        mapping.host = HostWorker(mapping.layout, names, _segment_sizes(tensors))
    except (UnknownLayout, SegmentRefused) as error:
        mapping.layout, mapping.refusal = None, str(error)
        mapping.is_final = isinstance(error, UnknownLayout)


def _layer(index: int, tensor: CpuShmTensor, hints: LayoutHints) -> LayerLayout:
    m = tensor.metadata
    spec = TensorSpec(m.dtype, tuple(m.shape), tuple(m.stride), m.storage_offset)
    return layer_layout(index, spec, hints.kv_layout, tensor.nbytes)


def _segment_sizes(tensors: list[CpuShmTensor]) -> dict[str, int]:
    """Each segment once, however many tensors lie in it (fused pools)."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.shm_name] = max(tensor.nbytes, sizes.get(tensor.shm_name, 0))
    return sizes


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
