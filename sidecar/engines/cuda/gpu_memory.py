"""The memory of a worker on a GPU: its child moves it."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.gpu import Gpu
from sidecar.engines.cuda.protocol import FileObject, Move, Moved, MoveFiles, Unmap
from sidecar.engines.worker_memory import Blocks, ChunkCopy

log = logging.getLogger(__name__)

_jobs = itertools.count(1)

# (device, direction, transfer, bytes): a transfer has ended well.
Observe = Callable[[str, str, Moved, int], None]


class GpuMemory:
    """`WorkerMemory` on a GPU. A transfer is done when its last byte has arrived."""

    on_gpu: ClassVar[bool] = True

    def __init__(
        self,
        gpu: Gpu,
        number: int,
        pool: CopyPool,
        observe: Observe,
        close: Callable[["GpuMemory"], None],
    ) -> None:
        """`number` is what the child knows the worker by."""
        self.gpu = gpu
        self._number, self._pool, self._observe, self._close = number, pool, observe, close

    @property
    def device(self) -> str:
        return self.gpu.uuid

    @property
    def near(self) -> int | None:
        return self.gpu.near

    def store(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._transfer(copies, event, on_done, is_store=True)

    def load(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._transfer(copies, event, on_done, is_store=False)

    @property
    def done_event(self) -> bytes | None:
        return self.gpu.done_event

    def close(self) -> None:
        self._close(self)

    def unmap(self) -> None:
        self.gpu.tell(Unmap(self._number))

    def _transfer(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None],
        is_store: bool,
    ) -> None:  # fmt: skip
        offsets = [copy.entry.offset for copy in copies]
        order = Move(next(_jobs), self._number, is_store, event, offsets, *_blocks(copies))
        self._begin(order, copies, on_done)

    def _move_files(
        self, files: list[FileObject], copies: Sequence[ChunkCopy], event: bytes,
        on_moved: Callable[[Moved], None], on_done: Callable[[bool], None], is_store: bool,
    ) -> None:  # fmt: skip
        """The same between files and the blocks of `copies`; `on_moved` is called first."""
        order = MoveFiles(next(_jobs), self._number, is_store, event, files, *_blocks(copies))
        self._begin(order, copies, on_done, on_moved)

    def _begin(
        self, order: Move | MoveFiles, copies: Sequence[ChunkCopy],
        on_done: Callable[[bool], None], on_moved: Callable[[Moved], None] = lambda moved: None,
    ) -> None:  # fmt: skip
        nbytes = sum(copy.entry.size for copy in copies)
        direction = "store" if order.is_store else "load"
        end = self._pool.adopt(on_done)

        def ended(moved: Moved) -> None:
            on_moved(moved)
            if moved.error is None:
                self._observe(self.device, direction, moved, nbytes)
            else:
                log.warning("a %s failed on %s: %s", direction, self.device, moved.error)
            end(moved.error is None)

        self.gpu.move(order, ended)


def _blocks(copies: Sequence[ChunkCopy]) -> tuple[list[bytes], list[bytes | None]]:
    """`blocks` and `wanted` of an order, by group."""
    groups = range(len(copies[0].blocks))
    blocks = [np.stack([copy.blocks[g] for copy in copies]).tobytes() for g in groups]
    return blocks, [_wanted(copies, g) for g in groups]


def _wanted(copies: Sequence[ChunkCopy], group: int) -> bytes | None:
    """Which blocks of a group are written, as bool [chunks, blocks a chunk]; None = all."""
    if all(copy.wanted[group] is None for copy in copies):
        return None
    return np.stack([_mask(copy.blocks[group], copy.wanted[group]) for copy in copies]).tobytes()


def _mask(blocks: Blocks, wanted: Blocks | None) -> np.ndarray:
    mask = np.full(len(blocks), wanted is None)
    if wanted is not None:
        mask[wanted] = True
    return mask
