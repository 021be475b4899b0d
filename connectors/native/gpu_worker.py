"""The worker for CUDA, ROCm and XPU: vLLM's own, over the sidecar's arena."""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from connectors.native.arena import Arena, Arenas
from connectors.native.geometry import Geometry
from connectors.native.membership import Membership
from connectors.native.places import Places
from connectors.native.transfer import ArenaSlots
from connectors.native.wire import SLOT_BYTES

PAGE_BYTES: Final = 4096


class ArenaRegion:
    """An arena as vLLM's worker asks for it, in the place of a SharedOffloadRegion.

    It is asked for a view of each tensor's pages, [rows, bytes], and addresses row `id` by
    `id * stride`. Here the rows are SLOT_BYTES apart and overlap, so that an id is a slot. The
    last row is the last slot that has room for an object.

    vLLM would pin all of a region at once, and block: `total_size_bytes` is 0 for it, since
    `pinning` has done so piece by piece, and `is_pinned` is what came of that.
    """

    total_size_bytes = 0
    _row_stride = SLOT_BYTES
    page_size = PAGE_BYTES

    def __init__(self, arena: Arena, geometry: Geometry) -> None:
        self.rank = geometry.rank
        self.cpu_page_size = geometry.share
        self.pinned_addresses: list[int] = []
        self._pinned = arena.pinned
        self._rows = (len(arena.bytes) - geometry.object_bytes) // SLOT_BYTES + 1
        self._offset = geometry.offset
        self._end = geometry.offset + geometry.share
        self._base: Any = torch.from_numpy(arena.bytes).view(torch.int8)
        self._arena: Arena | None = arena

    @property
    def is_pinned(self) -> bool:
        return self._pinned

    @is_pinned.setter
    def is_pinned(self, _: bool) -> None:
        """vLLM says so after having pinned nothing."""

    def create_next_worker_view(self, tensor_page_size: int) -> Any:
        """Rows of the next tensor, each `tensor_page_size` bytes (int8) of a chunk."""
        offset = self._offset
        self._offset += tensor_page_size
        assert self._offset <= self._end
        return torch.as_strided(self._base, (self._rows, tensor_page_size), (SLOT_BYTES, 1), offset)

    def cleanup(self) -> None:
        """vLLM's worker is done with it. The arena unpins and unmaps itself."""
        self._base = self._arena = None


@dataclass(slots=True)
class _Inner:
    """vLLM's worker over one arena, and its jobs that have not ended."""

    arena: Arena
    worker: Any
    jobs: set[int] = field(default_factory=set)


class GpuWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies between `kv_caches` and the slots of `arenas` by vLLM's worker.

    `membership` maps them, and ends with the worker. Raises ValueError if the tensors do not fit
    `geometry`.
    """

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        geometry: Geometry,
        arenas: Arenas,
        membership: Membership,
    ) -> None:
        self._kv_caches, self._geometry, self._arenas = kv_caches, geometry, arenas
        self._membership = membership
        self._places = Places(kv_caches, geometry)
        self._inner: list[_Inner] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: ArenaSlots) -> bool:
        inner = self._of(dst_spec)
        for part, place in self._places.of(src_spec, dst_spec, inner.arena):
            self._places.clear_rest(part, place)
        inner.jobs.add(job_id)
        return bool(inner.worker.submit_store(job_id, src_spec, dst_spec))

    def submit_load(
        self, job_id: int, src_spec: ArenaSlots, dst_spec: GPULoadStoreSpec, **expedited: bool
    ) -> bool:
        """`expedited` is known to vLLM 0.33 and newer."""
        inner = self._of(src_spec)
        self._places.of(dst_spec, src_spec, inner.arena)
        inner.jobs.add(job_id)
        return bool(inner.worker.submit_load(job_id, src_spec, dst_spec, **expedited))

    def get_finished(self) -> list[TransferResult]:
        results = []
        for inner in self._inner:
            ended = inner.worker.get_finished()
            inner.jobs.difference_update(result.job_id for result in ended)
            results += ended
        self._end_idle()
        return results

    def wait(self, job_ids: set[int]) -> None:
        for inner in self._inner:
            inner.worker.wait(job_ids & inner.jobs)

    def shutdown(self) -> None:
        self._membership.stop()
        for inner in self._inner:
            inner.worker.shutdown()
        self._inner.clear()

    def _end_idle(self) -> None:
        """Of the workers over arenas before the present one."""
        for at in reversed(range(len(self._inner) - 1)):
            if not self._inner[at].jobs:
                self._inner[at].worker.shutdown()
                self._arenas.retire(self._inner.pop(at).arena)

    def _of(self, slots: ArenaSlots) -> _Inner:
        """Raises UnknownArena."""
        arena = self._arenas.of(slots.server)
        if not self._inner or self._inner[-1].arena is not arena:
            self._inner.append(_Inner(arena, self._make(arena)))
        return self._inner[-1]

    def _make(self, arena: Arena) -> Any:
        from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker

        region = ArenaRegion(arena, self._geometry)
        return CPUOffloadingWorker(
            kv_caches=self._kv_caches,
            blocks_per_chunk=self._geometry.blocks_per_chunk,
            num_cpu_chunks=region._rows,
            mmap_region=region,
        )
