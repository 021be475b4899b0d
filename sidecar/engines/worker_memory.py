"""What the handlers know of a worker's KV memory, wherever it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from sidecar.cache.entry import Entry

Blocks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkCopy:
    """One chunk to copy: its object, its blocks by group, and which of them are written.

    `wanted` holds positions in the chunk by group, None for all; stores always copy all.
    """

    entry: Entry
    blocks: list[Blocks]
    wanted: list[Blocks | None]


class WorkerMemory(Protocol):
    """Moves a worker's blocks. All methods on the loop thread; none of them blocks.

    Block ids must have been checked against the layout, 0 <= id < blocks. `event` is what the
    worker sent with its request: nothing of its memory is touched before that has happened.
    `on_done(ok)` is called on the loop thread, when nobody touches the memory any more.
    """

    on_gpu: ClassVar[bool]

    @property
    def device(self) -> str:
        """A name for people and metrics."""

    @property
    def near(self) -> int | None:
        """The part of the arena to which its bytes have the shortest way, if one is known."""

    def store(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        """Copy chunks (at least one) into their objects."""

    def load(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        """Copy objects (at least one) back into their chunks' blocks."""

    @property
    def done_event(self) -> bytes | None:
        """An event that has happened, as a worker on a GPU imports one; None if there is none."""

    def close(self) -> None:
        """Let go of the memory, after the copies that use it. Once."""
