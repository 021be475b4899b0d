"""The memory of a worker on a GPU: its child moves it."""

import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from sidecar.cache.entry import Entry
from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.gpu import Gpu
from sidecar.engines.cuda.protocol import FileObject, Move, Moved, MoveFiles, Unmap
from sidecar.engines.memory import Blocks, ChunkCopy
from sidecar.gds.entry import FileEntry

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

    @property
    def moves_files(self) -> bool:
        return self.gpu.moves_files

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
        self,
        copies: Sequence[ChunkCopy],
        event: bytes,
        on_done: Callable[[bool], None],
        is_store: bool,
    ) -> None:
        below = [copy for copy in copies if isinstance(copy.entry, FileEntry)]
        above = [copy for copy in copies if not isinstance(copy.entry, FileEntry)]
        if below and above:
            on_done = _both(on_done)
        if above:
            offsets = [copy.entry.offset for copy in above]
            head = next(_jobs), self._number, is_store, event
            self._begin(Move(*head, offsets, *_blocks(above)), above, on_done)
        if below:
            head = next(_jobs), self._number, is_store, event
            self._begin(MoveFiles(*head, _objects(below), *_blocks(below)), below, on_done)

    def _begin(
        self,
        order: Move | MoveFiles,
        copies: Sequence[ChunkCopy],
        on_done: Callable[[bool], None],
    ) -> None:
        entries = [copy.entry for copy in copies]
        end = self._pool.adopt(on_done)
        self.gpu.move(order, partial(self._moved, end, order.is_store, entries))

    def _moved(
        self, end: Callable[[bool], None], is_store: bool, entries: list[Entry], moved: Moved
    ) -> None:
        for entry in entries:
            if isinstance(entry, FileEntry):
                entry.failed |= moved.file_failed
        nbytes = sum(entry.size for entry in entries)
        direction = "store" if is_store else "load"
        if moved.error is None:
            if moved.digests:
                _take_digests(entries, moved.digests)
            self._observe(self.device, direction, moved, nbytes)
        else:
            log.warning("a %s failed on %s: %s", direction, self.device, moved.error)
        end(moved.error is None)


def _take_digests(entries: Sequence[Entry], digests: Sequence[bytes]) -> None:
    """These have been written to their files."""
    for entry, digest in zip(entries, digests, strict=True):
        assert isinstance(entry, FileEntry) and entry.file is not None
        entry.file = entry.file._replace(digest=digest)


def _both(on_done: Callable[[bool], None]) -> Callable[[bool], None]:
    """To be called twice; the second time calls `on_done`, with whether both went well."""
    outcomes: list[bool] = []

    def part_done(ok: bool) -> None:
        outcomes.append(ok)
        if len(outcomes) == 2:
            on_done(all(outcomes))

    return part_done


def _objects(copies: Sequence[ChunkCopy]) -> list[FileObject]:
    return [
        FileObject(file.path, file.offset, copy.entry.size, file.digest)
        for copy in copies
        if isinstance(copy.entry, FileEntry) and (file := copy.entry.file) is not None
    ]


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
