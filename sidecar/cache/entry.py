"""One cached object and the space it lives in."""

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from sidecar.cache.arena import aligned
from sidecar.cache.keys import SpaceKey
from sidecar.cache.shards import Shards
from sidecar.flow import Outcome

if TYPE_CHECKING:
    from sidecar.cache.holds import Holds


class State(StrEnum):
    """An object is visible to lookups only when READY.

    WITHDRAWN will not be published, but somebody may still write to its slot. PROMISED was
    cleared: only who has a lease of it may still read it. DROPPED is not even promised any more,
    but copied from. GONE has no slot. INHERITED has had its slot since before this server was
    started: as an object that is still to prove itself, or as what somebody may still write to.
    """

    WRITING = "writing"
    WITHDRAWN = "withdrawn"
    READY = "ready"
    PROMISED = "promised"
    DROPPED = "dropped"
    GONE = "gone"
    INHERITED = "inherited"


class Heat(IntEnum):
    """What tells how soon an object may go: COLD is easily had again, from L2; WARM was stored and
    not asked for since; HOT was found by a lookup."""

    COLD = 0
    WARM = 1
    HOT = 2


# What may become of an object in each state, and by which call.
STEPS = {
    State.WRITING: {
        "publish": State.READY,
        "abort": State.GONE,
        "withdraw": State.WITHDRAWN,
    },
    State.WITHDRAWN: {"release": State.GONE},
    State.READY: {
        "drop": State.GONE,
        "drop pinned": State.DROPPED,
        "clear leased": State.PROMISED,
    },
    State.PROMISED: {
        "clear by force": State.GONE,
        "clear by force, pinned": State.DROPPED,
        "end of the last hold": State.GONE,
    },
    State.DROPPED: {"end of the last copy": State.GONE},
    State.INHERITED: {"prove": State.READY, "disown": State.GONE},
    State.GONE: {},
}
# Who may begin to hold it. A promise outlives what was promised, and then holds nothing.
MAY_LEASE = {State.WRITING, State.READY}
MAY_PIN = {State.READY, State.PROMISED}


class IllegalStep(AssertionError):
    """The server has a bug: what was asked for would break an invariant, and was not done."""


class Space:
    """The objects of one (model, rank, salt, layout), by chunk hash; `holds` counts their holds.

    `inherited` is how many more have slots here, and are not to be found: State.INHERITED.
    """

    __slots__ = ("holds", "inherited", "key", "ready", "writing")

    def __init__(self, holds: "Holds", key: SpaceKey) -> None:
        self.holds = holds
        self.key = key
        self.ready: Shards[bytes, Entry] = Shards()
        self.writing: dict[bytes, Entry] = {}
        self.inherited = 0

    @property
    def is_empty(self) -> bool:
        return not (self.ready or self.writing or self.inherited)

    def prefix(self, hashes: Sequence[bytes]) -> "list[Entry]":
        """The objects of a sequence's beginning, up to the first that is not there."""
        found: list[Entry] = []
        for chunk_hash in hashes:
            entry = self.ready.get(chunk_hash)
            if entry is None:
                break
            found.append(entry)
        return found


class Sizes(NamedTuple):
    """Of an object, in bytes: its own, that of its slot, and of the header's room in it.

    Objects of a layout share one.
    """

    object: int
    slot: int
    headroom: int


@lru_cache(maxsize=256)
def sizes_of(size: int, headroom: int) -> Sizes:
    """Those of an object of `size` bytes behind `headroom` bytes."""
    return Sizes(size, headroom + aligned(size), headroom)


@lru_cache(maxsize=4096)
def shared(groups: frozenset[int]) -> frozenset[int]:
    """An equal set that all who ask have in common: one for each object would take 216 bytes, and
    the garbage collector walks sets."""
    return groups


class Entry(Struct, gc=False, eq=False):
    """One object: its place in the arena (`offset`, `size` in bytes) and who holds it.

    Its slot is `[start, end)`: room for a header if there are tiers below, the object, padding.
    `leases` count promises to readers that are still to come; `pins` count copies under way.
    Either keeps it from eviction, and pinned bytes are not reused even when it is GONE.
    `missing` names the KV groups whose blocks were null when it was stored. `sealed` tells
    that the header is in place. `heat` is one of the things that the eviction policy goes by.
    `place` in the order of eviction is given by the policy with each use. `settled` is set when
    it is known what becomes of it, for those who wait for that: to the entry that takes its
    place, if there is one. Where there is no outcome nobody may wait.

    There may be millions, so the garbage collector does not see them (`gc=False`): it would walk
    all of them again and again. What refers to each other here comes apart by itself: an object
    that is gone is in no space, and what is settled refers to nobody who waited.
    """

    space: Space
    hash: bytes
    start: int
    sizes: Sizes
    missing: frozenset[int] = frozenset()
    sealed: bool = False
    heat: Heat = Heat.WARM
    state: State = State.WRITING
    leases: int = 0
    pins: int = 0
    stored_at: float = 0.0
    used_at: float = 0.0
    place: int = -1
    settled: "Outcome[Entry | None] | None" = None

    @property
    def size(self) -> int:
        return self.sizes.object

    @property
    def slot_bytes(self) -> int:
        return self.sizes.slot

    @property
    def end(self) -> int:
        return self.start + self.sizes.slot

    @property
    def offset(self) -> int:
        return self.start + self.sizes.headroom

    @property
    def evictable(self) -> bool:
        """Complete, and in nobody's hands."""
        return self.state is State.READY and not (self.leases or self.pins)

    def step(self, call: str) -> None:
        """Take a step of `STEPS`. Raises IllegalStep if there is none in its state."""
        state = STEPS[self.state].get(call)
        if state is None:
            raise IllegalStep(f"{call}: chunk {self.hash.hex()} is {self.state.value}")
        self.state = state

    def settle(self, successor: "Entry | None" = None) -> None:
        """It is known what becomes of it. Runs nobody: those who wait go on later."""
        outcome, self.settled = self.settled, None
        if outcome is not None:
            outcome.set(successor)

    async def when_settled(self) -> None:
        """Wait until it is known what becomes of it, or of what takes its place."""
        entry: Entry | None = self
        while entry is not None and entry.settled is not None:
            entry = await entry.settled
