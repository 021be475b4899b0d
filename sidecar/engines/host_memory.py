"""Workers whose KV memory the server itself has mapped: the copy threads move it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sidecar.engines.copier import CopyPool, Piece
from sidecar.engines.host import HostWorker
from sidecar.engines.worker_memory import ChunkCopy

# A piece is what one thread copies before another job may have its turn. Threads hand the GIL
# to each other between pieces: small ones cost a fifth of the throughput of a large transfer.
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 2 << 20, 32 << 20
_PIECES_A_THREAD = 4

# Between a chunk and its slot, part `n` of `m`.
_Move = Callable[[ChunkCopy, npt.NDArray[np.uint8], int, int], None]


class HostMemory:
    """`WorkerMemory` of a worker on the CPU; its events mean nothing there."""

    on_gpu: ClassVar[bool] = False
    device = "cpu"
    near = None

    def __init__(
        self, host: HostWorker, arena: npt.NDArray[np.uint8], pool: CopyPool, threads: int
    ) -> None:
        self.host = host
        self._arena, self._pool, self._threads = arena, pool, threads

    def store(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._submit(partial(_gather, self.host), copies, on_done)

    def load(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        self._submit(partial(_scatter, self.host), copies, on_done)

    @property
    def done_event(self) -> None:
        return None

    def close(self) -> None:
        """Unmap on a copy thread: gigabytes take a while."""
        hosts = [self.host]
        del self.host
        self._pool.submit([hosts.clear], lambda ok: None)

    def _submit(
        self, move: _Move, copies: Sequence[ChunkCopy], on_done: Callable[[bool], None]
    ) -> None:
        """Cut a transfer into pieces, some chunks each or a part of one, for the copy threads."""
        size = copies[0].entry.size
        even = size * len(copies) // (self._threads * _PIECES_A_THREAD)
        wanted = min(max(even, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)
        parts = -(-size // wanted)
        together = max(1, wanted // size)
        pieces: list[Piece] = [
            partial(_move_some, move, self._arena, copies[i : i + together], part, parts)
            for i in range(0, len(copies), together)
            for part in range(parts)
        ]
        self._pool.submit(pieces, on_done)


def _move_some(
    move: _Move,
    arena: npt.NDArray[np.uint8],
    copies: Sequence[ChunkCopy],
    part: int,
    parts: int,
) -> None:
    """Move a part of each of some chunks. For copy threads."""
    for copy in copies:
        entry = copy.entry
        move(copy, arena[entry.offset : entry.offset + entry.size], part, parts)


def _gather(
    host: HostWorker, copy: ChunkCopy, slot: npt.NDArray[np.uint8], part: int, parts: int
) -> None:
    host.gather(copy.blocks, slot, part, parts)


def _scatter(
    host: HostWorker, copy: ChunkCopy, slot: npt.NDArray[np.uint8], part: int, parts: int
) -> None:
    host.scatter(slot, copy.blocks, copy.wanted, part, parts)
