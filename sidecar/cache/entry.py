"""One cached object and the space it lives in."""

from enum import StrEnum

from sidecar.cache.keys import SpaceKey
from sidecar.flow import Outcome


class State(StrEnum):
    """An object is visible to lookups only when READY.

    WITHDRAWN will not be published, but somebody may still write to its slot. DROPPED is not
    found any more, but copied from. GONE has no slot. BELOW is complete in a file, has no slot
    either, and is not in the index of the L1, which counts who holds it.
    """

    WRITING = "writing"
    WITHDRAWN = "withdrawn"
    READY = "ready"
    DROPPED = "dropped"
    GONE = "gone"
    BELOW = "below"


# What may become of an object in each state, and by which call.
STEPS = {
    State.WRITING: {
        "publish": State.READY,
        "abort": State.GONE,
        "withdraw": State.WITHDRAWN,
        "keep in a file": State.BELOW,
    },
    State.WITHDRAWN: {"release": State.GONE},
    State.READY: {"drop": State.GONE, "drop pinned": State.DROPPED},
    State.DROPPED: {"end of the last copy": State.GONE},
    State.BELOW: {},
    State.GONE: {},
}
# Who may begin to hold it. A promise outlives what was promised, and then holds nothing.
MAY_LEASE = {State.WRITING, State.READY, State.BELOW}
MAY_PIN = {State.READY, State.BELOW}


class IllegalStep(AssertionError):
    """The server has a bug: what was asked for would break an invariant, and was not done."""


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
    `place` in the order of eviction is given by the policy with each use. `settled` is set when
    it is known what becomes of it, for those who wait for that: to the entry that takes its
    place, if there is one. Where there is no outcome nobody may wait.
    """

    __slots__ = (
        "cold",
        "end",
        "hash",
        "leases",
        "missing",
        "offset",
        "pins",
        "place",
        "sealed",
        "settled",
        "size",
        "space",
        "start",
        "state",
        "stored_at",
        "used_at",
    )

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
        self.state = State.WRITING
        self.leases = 0
        self.pins = 0
        self.stored_at = 0.0
        self.used_at = 0.0
        self.place = -1
        self.settled: Outcome[Entry | None] | None = None

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
