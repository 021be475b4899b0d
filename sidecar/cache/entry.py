"""One cached object and the space it lives in."""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from sidecar.cache.keys import SpaceKey


class State(Enum):
    """An object in the arena is visible to lookups only when READY; GONE ones may have readers.

    A BELOW one is complete too, in a file: it has no bytes in the arena, and is not in the index
    of the L1, which counts who holds it.
    """

    WRITING = "writing"
    READY = "ready"
    GONE = "gone"
    BELOW = "below"


class StoredFile(NamedTuple):
    """Where the bytes of an object are, and their xxh3_128 (16 bytes; empty: not written yet)."""

    path: str
    offset: int
    digest: bytes


class Space:
    """The objects of one (model, rank, salt, layout), by chunk hash."""

    __slots__ = ("key", "ready", "writing")

    def __init__(self, key: SpaceKey) -> None:
        self.key = key
        self.ready: dict[bytes, Entry] = {}
        self.writing: dict[bytes, Entry] = {}


class Entry:
    """One object: its place in the arena (`offset`, `size` in bytes) and who holds it.

    Its slot is `[start, end)`: room for a header if there are tiers below, the object, padding.
    `leases` count promises to readers that are still to come; `pins` count copies under way.
    Either keeps it from eviction, and pinned bytes are not reused even when it is GONE.
    `missing` names the KV groups whose blocks were null when it was stored. `sealed` tells
    that the header is in place. A `cold` one is easily had again: the first to be evicted.
    `file` is where one is that GPUs read or write themselves, whose slot is empty; `file_failed`:
    one could not.
    """

    __slots__ = (
        "cold",
        "end",
        "file",
        "file_failed",
        "hash",
        "leases",
        "missing",
        "offset",
        "on_settled",
        "pins",
        "sealed",
        "size",
        "space",
        "start",
        "state",
        "stored_at",
        "used_at",
    )

    @property
    def in_arena(self) -> bool:
        """Whether it has a slot there: else GPUs move it from or to a file themselves."""
        return self.end > self.start

    @property
    def evictable(self) -> bool:
        """Complete, and in nobody's hands."""
        return self.state is State.READY and not (self.leases or self.pins)

    def __init__(
        self,
        space: Space,
        hash: bytes,
        slot: range,
        offset: int,
        size: int,
        missing: frozenset[int] = frozenset(),
    ) -> None:
        self.space = space
        self.hash = hash
        self.start = slot.start
        self.end = slot.stop
        self.offset = offset
        self.size = size
        self.missing = missing
        self.sealed = False
        self.cold = False
        self.file: StoredFile | None = None
        self.file_failed = False
        self.state = State.WRITING
        self.leases = 0
        self.pins = 0
        self.stored_at = 0.0
        self.used_at = 0.0
        self.on_settled: list[Callable[[], None]] | None = None

    def settle(self) -> None:
        """It is known what becomes of it: tell those who wait."""
        waiting, self.on_settled = self.on_settled, None
        for callback in waiting or ():
            callback()
