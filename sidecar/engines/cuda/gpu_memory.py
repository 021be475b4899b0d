"""The memory of a worker on a GPU: its child moves it."""

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.gpu import Gpu
from sidecar.engines.cuda.protocol import Move, Moved, Unmap
from sidecar.engines.memory import Blocks, ChunkCopy

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

    def store(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._move(copies, event, on_done, is_store=True)

    def load(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._move(copies, event, on_done, is_store=False)

    def done_event(self, event: bytes) -> bytes:
        """Empty: complete already. Whoever sends handles that we read is lmcache 0.5.6 or newer,
        which takes it so; older clients, which would import it, send pickles.
        """
        return b""

    def close(self) -> None:
        self._close(self)

    def unmap(self) -> None:
        self.gpu.tell(Unmap(self._number))

    def _move(
        self,
        copies: Sequence[ChunkCopy],
        event: bytes,
        on_done: Callable[[bool], None],
        is_store: bool,
    ) -> None:
        groups = range(len(copies[0].blocks))
        order = Move(
            job=next(_jobs),
            worker=self._number,
            is_store=is_store,
            event=event,
            offsets=[copy.entry.offset for copy in copies],
            blocks=[np.stack([copy.blocks[g] for copy in copies]).tobytes() for g in groups],
            wanted=[_wanted(copies, g) for g in groups],
        )
        nbytes = sum(copy.entry.size for copy in copies)
        end = self._pool.adopt(on_done)
        self.gpu.move(order, partial(self._moved, end, is_store, nbytes))

    def _moved(
        self, end: Callable[[bool], None], is_store: bool, nbytes: int, moved: Moved
    ) -> None:
        direction = "store" if is_store else "load"
        if moved.error is None:
            self._observe(self.device, direction, moved, nbytes)
        else:
            log.warning("a %s failed on %s: %s", direction, self.device, moved.error)
        end(moved.error is None)


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
