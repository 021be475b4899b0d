"""Slots that the session holds and nobody writes to yet."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from connectors.native.wire import MOST_ITEMS

# The least and the most that an engine holds ahead of its stores.
FEWEST: Final = 4
LEAST_BYTES: Final = 64 << 20
MOST_BYTES: Final = 2 << 30
# The largest recent store counts for so long.
PEAK_SECONDS: Final = 60.0
# After a reservation that brought nothing the next one waits.
EMPTY_SECONDS: Final = 0.2


class Pool:
    """Slots for objects of `object_bytes`, as many as the next stores are likely to need.

    How many that are: as many as the largest store of the last minute took, and what requests are
    known to miss and have not stored yet (`expect`).
    """

    def __init__(self, object_bytes: int) -> None:
        self._least = min(MOST_ITEMS, max(FEWEST, LEAST_BYTES // object_bytes))
        self._most = min(MOST_ITEMS, max(FEWEST, MOST_BYTES // object_bytes))
        self._free: deque[int] = deque()
        self._held: set[int] = set()
        self._expected: dict[str, int] = {}
        self._total = 0
        self._peak, self._peak_ends = 0, 0.0
        self._not_before = 0.0
        self.refilling = False

    def __len__(self) -> int:
        return len(self._free)

    @property
    def slots(self) -> list[int]:
        return list(self._free)

    def expect(self, request: str, objects: int) -> None:
        """`request` will store this many, from now on."""
        objects = max(objects, 0)
        self._total += objects - self._expected.pop(request, 0)
        if objects:
            self._expected[request] = objects

    def expected_of(self, request: str) -> int:
        return self._expected.get(request, 0)

    def note_demand(self, objects: int, now: float) -> None:
        """A store asks for this many at once."""
        if objects >= self._peak or now >= self._peak_ends:
            self._peak, self._peak_ends = objects, now + PEAK_SECONDS

    def deficit(self, now: float, short: bool) -> int:
        """How many to reserve now. `short`: there are too few for a store."""
        if self.refilling or now < self._not_before:
            return 0
        missing = self._target() - len(self._free)
        # Few at a time are not worth a message, as long as there are some.
        return missing if short or missing > self._target() // 4 else 0

    def surplus(self) -> list[int]:
        """Slots to give back: more than twice what is needed is there."""
        if len(self._free) <= 2 * self._target():
            return []
        given = [self._free.pop() for _ in range(len(self._free) - self._target())]
        self._held.difference_update(given)
        return given

    def refill(self, slots: Sequence[int], last: int, now: float) -> bool:
        """Add what was reserved. False: these are no slots of this session, up to `last`."""
        fresh = set(slots)
        if len(fresh) < len(slots) or fresh & self._held:
            return False
        if fresh and not (min(fresh) >= 0 and max(fresh) <= last):
            return False
        self._free.extend(slots)
        self._held |= fresh
        if not slots:
            self._not_before = now + EMPTY_SECONDS
        return True

    def take(self, count: int) -> list[int]:
        """`count` slots, or as many as there are; they are the caller's."""
        taken = [self._free.popleft() for _ in range(min(count, len(self._free)))]
        self._held.difference_update(taken)
        return taken

    def clear(self) -> None:
        """The session has ended, and the slots with it."""
        self._free.clear()
        self._held.clear()
        self.refilling = False
        self._not_before = 0.0

    def _target(self) -> int:
        return min(self._most, max(self._least, self._peak) + self._total)
