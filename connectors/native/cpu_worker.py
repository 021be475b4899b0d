"""The worker for tensors in a CPU's memory, at the speed of memcpy.

vLLM has none of its own for the CPU. It promises what its GPU streams rely on: the blocks of a
store are not written, and those of a load not read, until the job has ended or `wait` has returned
for it. So a thread may copy beside the model.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import starmap

import numpy as np
import numpy.typing as npt
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from connectors.native.arena import Arenas
from connectors.native.copier import Copier
from connectors.native.geometry import Geometry, Ids, Part
from connectors.native.membership import Membership
from connectors.native.places import Places
from connectors.native.transfer import ArenaSlots

Bytes = npt.NDArray[np.uint8]
Place = tuple[Part, Bytes]
# One alone moves two thirds of what memcpy does, two as much.
_THREADS = 2
_START_SECONDS = 30.0


class CpuWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies between `kv_caches` and the slots of `arenas`.

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
        self._arenas, self._membership = arenas, membership
        # [blocks, bytes a block] each
        self._pages = [tensor.tensor.numpy().view(np.uint8) for tensor in kv_caches.tensors]
        self._places = Places(kv_caches, geometry)
        self._copier = Copier()
        self._threads = ThreadPoolExecutor(_THREADS, "kv-sidecar copies")
        # All threads from the start: where the system grants no more of them, a job would fail, and
        # vLLM ends over that.
        there = threading.Barrier(_THREADS, timeout=_START_SECONDS)
        for started in [self._threads.submit(there.wait) for _ in range(_THREADS)]:
            started.result()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: ArenaSlots) -> bool:
        found = self._found(src_spec, dst_spec)
        self._copier.submit(job_id, partial(self._copy_all, self._store, found))
        return True

    def submit_load(
        self,
        job_id: int,
        src_spec: ArenaSlots,
        dst_spec: GPULoadStoreSpec,
        expedited: bool = False,
    ) -> bool:
        found = self._found(dst_spec, src_spec)
        if expedited:  # vLLM waits for these within the step; the threads have others to do first
            self._copier.run_now(job_id, lambda: sum(starmap(self._load, found)))
        else:
            self._copier.submit(job_id, partial(self._copy_all, self._load, found))
        return True

    def get_finished(self) -> list[TransferResult]:
        return [
            TransferResult(
                job_id=done.job,
                success=done.moved is not None,
                transfer_size=done.moved,
                transfer_time=done.seconds,
            )
            for done in self._copier.take_done()
        ]

    def wait(self, job_ids: set[int]) -> None:
        self._copier.wait(job_ids)

    def shutdown(self) -> None:
        self._membership.stop()
        self._copier.stop()
        self._threads.shutdown()

    def _found(self, blocks: GPULoadStoreSpec, slots: ArenaSlots) -> list[Place]:
        """Where a job copies. Raises UnknownArena or ValueError before anything is copied."""
        return self._places.of(blocks, slots, self._arenas.of(slots.server))

    def _copy_all(self, copy: Callable[[Part, Bytes], int], found: list[Place]) -> int:
        copies = [self._threads.submit(copy, *each) for each in found]
        wait(copies)  # once one has failed the others must not go on behind the job's end
        return sum(each.result() for each in copies)

    def _store(self, part: Part, place: Bytes) -> int:
        self._places.clear_rest(part, place)
        return sum(_gather(*each) for each in self._fields(part, place))

    def _load(self, part: Part, place: Bytes) -> int:
        return sum(_scatter(*each) for each in self._fields(part, place))

    def _fields(self, part: Part, place: Bytes) -> Iterator[tuple[Bytes, Ids, Bytes]]:
        """vLLM's pages, which of them a part's blocks are, and their bytes in the slot."""
        last = part.first + len(part.blocks)
        lowest, highest = part.blocks.min(), part.blocks.max()
        for field in self._places.fields[part.group]:
            pages = self._pages[field.tensor][:, : field.used]
            rows = self._places.rows(field, place)[part.first : last, : field.used]
            # Else numpy would repeat rows, or take others: it clips ids and wraps negative ones.
            assert rows.shape == (len(part.blocks), field.used)
            assert lowest >= 0 and highest < len(pages)
            yield pages, part.blocks, rows


def _gather(pages: Bytes, blocks: Ids, rows: Bytes) -> int:
    """`rows` become `pages[blocks]`; the number of bytes."""
    if pages.flags.c_contiguous:
        np.take(pages, blocks, axis=0, out=rows, mode="clip")  # numpy buffers in other modes
    else:  # `take` would copy all pages first
        rows[:] = pages[blocks]
    return rows.nbytes


def _scatter(pages: Bytes, blocks: Ids, rows: Bytes) -> int:
    """`pages[blocks]` become `rows`; the number of bytes."""
    pages[blocks] = rows
    return rows.nbytes
