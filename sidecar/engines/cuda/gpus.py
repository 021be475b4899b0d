"""The GPUs that have workers now, each with its child process."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sidecar.cache.arena import PIECE_BYTES, Arena
from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.driver import Batches
from sidecar.engines.cuda.gpu import Gpu
from sidecar.engines.cuda.gpu_memory import GpuMemory, Observe
from sidecar.engines.cuda.map_order import Tensor, map_order
from sidecar.engines.cuda.protocol import OpenFiles, Populated
from sidecar.engines.groups import WorkerLayout

log = logging.getLogger(__name__)

COMMAND = [sys.executable, "-m", "sidecar.engines.cuda"]
_END_SECONDS = 5.0
# A GPU whose process could not start is left in peace for so long, whoever registers.
_AGAIN_SECONDS = 5.0
_MAX_GPUS = 32  # processes, also for GPUs that a peer has made up


@dataclass(frozen=True, slots=True)
class MapRefused:
    """Why a worker's memory is not mapped; `is_final` if no repetition would help."""

    reason: str
    is_final: bool


class GpuFiles(NamedTuple):
    """What GPUs' processes are told before they move files, and the memory of their workers."""

    order: OpenFiles
    memory: type[GpuMemory]


OnMapped = Callable[[GpuMemory | MapRefused], None]
OnLost = Callable[[GpuMemory], None]


class Gpus:
    """Starts a child for the first worker of a GPU and ends it after the last one.

    All methods on the loop thread.
    """

    def __init__(
        self,
        arena: Arena,
        nodes: Sequence[int],
        pool: CopyPool,
        post: Callable[[Callable[[], None]], None],
        observe: Observe,
        batches: Batches,
        files: GpuFiles | None,
    ) -> None:
        """`observe` is told of each transfer that has ended well; `pool` counts them all.

        The arena was placed on `nodes`. `batches`: let drivers begin many copies in one call.
        `files`: how GPUs are to move files themselves, if they are.
        """
        self._batches, self._files = batches, files
        self._arena, self._nodes = arena, nodes
        self._pool, self._post, self._observe = pool, post, observe
        self._populated: list[int] = []
        self._gpus: dict[str, Gpu] = {}
        self._ending: set[Gpu] = set()
        self._failed: dict[str, tuple[float, str]] = {}  # when and why, by UUID
        self._without_files: set[str] = set()  # UUIDs
        self._workers: dict[GpuMemory, OnLost] = {}
        self._numbers = itertools.count(1)

    def map(
        self,
        uuid: str,
        instance: int,
        layout: WorkerLayout,
        tensors: Sequence[Tensor],
        on_mapped: OnMapped,
        on_lost: OnLost,
        imports_events: bool = False,
    ) -> None:
        """Map the tensors of a worker, `instance`, on the GPU `uuid`.

        `on_mapped` gets the memory, or why there is none. `on_lost` gets a memory that is lost,
        unless it was closed before: the worker has to register again. `imports_events`: its client
        wants an event in each answer (`done_event`).
        """
        if uuid in self._failed:
            on_mapped(MapRefused(self._failed[uuid][1], is_final=False))
            return
        is_new = uuid not in self._gpus
        try:
            gpu = self._gpus.get(uuid) or self._start(uuid)
        except OSError as error:
            on_mapped(MapRefused(f"no process for {uuid}: {error}", is_final=False))
            return
        number = next(self._numbers)
        memory_type = self._files.memory if self._files is not None else GpuMemory
        memory = memory_type(gpu, number, self._pool, self._observe, self._close)
        self._workers[memory] = on_lost
        shares = [tensor.counter for tensor in tensors if tensor.counter is not None]
        order = map_order(number, instance, layout, tensors, imports_events)
        gpu.map(order, shares, partial(self._mapped, memory, on_mapped))
        if is_new and self._files is not None and uuid not in self._without_files:
            gpu.open_files(self._files.order)  # it takes seconds: not before the worker is answered

    def populated(self, offset: int) -> None:
        """The piece of the arena at `offset` is resident; it may be pinned."""
        piece = offset // PIECE_BYTES
        self._populated.append(piece)
        for gpu in self._gpus.values():
            gpu.tell(Populated([piece]))

    def pinned_bytes(self) -> int:
        """Bytes of the arena that are pinned, by the GPU that has pinned most. Any thread."""
        return max((gpu.pinned_bytes for gpu in list(self._gpus.values())), default=0)

    def watch(self) -> None:
        """To be called about once a second."""
        for gpu in [*self._gpus.values(), *self._ending]:
            gpu.watch()
        since = time.monotonic() - _AGAIN_SECONDS
        self._failed = {uuid: (at, why) for uuid, (at, why) in self._failed.items() if at > since}

    def close(self) -> None:
        """End all processes."""
        gpus = [*self._gpus.values(), *self._ending]
        for gpu in gpus:
            gpu.stop()
        for gpu in gpus:
            gpu.wait(_END_SECONDS)

    def _start(self, uuid: str) -> Gpu:
        """Raises OSError."""
        running = len(self._gpus) + len(self._ending)
        if running >= _MAX_GPUS:
            raise OSError(f"{running} GPUs have one")
        gpu = Gpu(
            uuid, COMMAND, self._arena, self._nodes, self._batches,
            self._post, self._lost, self._ended,
        )  # fmt: skip
        self._gpus[uuid] = gpu
        gpu.tell(Populated(list(self._populated)))
        return gpu

    def _mapped(self, memory: GpuMemory, on_mapped: OnMapped, error: str | None) -> None:
        if error is None and memory in self._workers:
            on_mapped(memory)
            return
        self._leave(memory)
        reason = error or "the GPU was given up meanwhile"
        on_mapped(MapRefused(reason, memory.gpu.is_unusable))

    def _close(self, memory: GpuMemory) -> None:
        """A worker's memory is not wanted any more."""
        if memory in self._workers:
            memory.unmap()
            self._leave(memory)

    def _leave(self, memory: GpuMemory) -> None:
        self._workers.pop(memory, None)
        gpu = memory.gpu
        if gpu.is_ending or any(other.gpu is gpu for other in self._workers):
            return
        gpu.end()
        self._retire(gpu)

    def _lost(self, gpu: Gpu) -> None:
        self._retire(gpu)
        lost = [memory for memory in self._workers if memory.gpu is gpu]
        for memory in lost:
            self._workers.pop(memory)(memory)

    def _retire(self, gpu: Gpu) -> None:
        if self._gpus.get(gpu.uuid) is gpu:
            del self._gpus[gpu.uuid]
            self._ending.add(gpu)

    def _ended(self, gpu: Gpu) -> None:
        self._ending.discard(gpu)
        if gpu.could_not_start:
            self._failed[gpu.uuid] = time.monotonic(), gpu.reason
        elif gpu.opens_files and not gpu.is_unusable:
            log.warning("%s: files go through the L1: it ended when it opened them", gpu.uuid)
            self._without_files.add(gpu.uuid)
