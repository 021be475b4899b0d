"""Which bytes of the arena are free, and which entry occupies the others."""

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.entry import Entry, IllegalStep
from sidecar.cache.extents import Extents
from sidecar.cache.quotas import Quotas

_FREED_A_CALL = 64
# A dictionary of 8,192 places takes 5,460 items, and one of half as many places half of them: so it
# is full when its region is, whether slots have 1, 2, 4 or more pages.
_REGION_BYTES = 5460 * ALIGNMENT


class Slots:
    """The slots of entries by place. `used_bytes` are those that count as occupied.

    The arena may have parts: each slot lies in one, and so do bytes that are free together.
    After `vacate` slots count as free at once, and become free with the next calls of `take`:
    those of a large cache at one time would take too long.
    """

    def __init__(self, starts: Sequence[int], quotas: Quotas) -> None:
        """`starts`: where the arena's parts begin, the first one at 0. `quotas` counts by salt."""
        self.used_bytes = 0
        self._quotas = quotas
        self._starts = starts
        self._parts = [Extents() for _ in starts]
        # Whatever occupies bytes, by where it begins; a dictionary for each region of the arena,
        # because one for all would stand still to grow.
        self._at: defaultdict[int, dict[int, Entry]] = defaultdict(dict)
        self._by_size: Counter[int] = Counter()
        self._vacated: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        """Whatever occupies bytes, what was vacated and is not free yet included."""
        return (entry for region in self._at.values() for entry in region.values())

    def at(self, start: int) -> Entry | None:
        """What occupies the bytes from `start` on."""
        region = self._at.get(start // _REGION_BYTES)
        return region.get(start) if region is not None else None

    def grow(self, offset: int, size: int) -> None:
        """`[offset, offset + size)` of the arena may be used."""
        self._part(offset).give(offset, size)

    def grow_around(self, pieces: Sequence[range]) -> None:
        """The same where something occupies some of it already: `pieces` in order, whole slots."""
        taken = deque(sorted((entry.start, entry.end) for entry in self))
        for piece in pieces:
            at = piece.start
            while at < piece.stop:
                start, end = taken[0] if taken else (piece.stop, piece.stop)
                if at < start:
                    self.grow(at, min(start, piece.stop) - at)
                at = min(end, piece.stop)
                if end <= piece.stop and taken:
                    taken.popleft()

    def take(self, size: int, near: int | None = None) -> int | None:
        """The start of `size` free bytes, None if no free ones lie together so.

        They are in the part `near` if there is room, else where most is free.
        """
        parts = self._parts if len(self._parts) == 1 else self._preferred(near)
        self._free_vacated()
        start = _take(parts, size)
        while start is None and self._vacated:
            self._free_vacated()
            start = _take(parts, size)
        return start

    def occupy(self, entry: Entry) -> None:
        """`entry` has the bytes that were taken for it."""
        self._at[entry.start // _REGION_BYTES][entry.start] = entry
        self._by_size[entry.slot_bytes] += 1
        self.used_bytes += entry.slot_bytes
        self._quotas.occupy(entry.space.key.cache_salt, entry.slot_bytes)

    def free(self, entry: Entry) -> None:
        """Nobody uses the bytes of `entry` any more."""
        if self.at(entry.start) is not entry:
            raise IllegalStep(f"free: chunk {entry.hash.hex()} has no slot at {entry.start}")
        self.used_bytes -= entry.slot_bytes
        self._quotas.free(entry.space.key.cache_salt, entry.slot_bytes)
        self._give(entry)

    def vacate(self, entries: Sequence[Entry]) -> None:
        """The same for many; a few steps for each."""
        by_salt: Counter[str] = Counter()
        for entry in entries:
            by_salt[entry.space.key.cache_salt] += entry.sizes.slot
        for salt, size in by_salt.items():
            self._quotas.free(salt, size)
        self.used_bytes -= by_salt.total()
        self._vacated.extend(entries)

    def evictable_around(
        self, victim: Entry, size: int, may_take: Callable[[Entry], bool]
    ) -> list[Entry]:
        """Objects that give `size` bytes in a row with `victim` and what is free; or none.

        `may_take(object)` tells whether one may go beside those that it was told may.
        """
        if not may_take(victim):
            return []
        part, found = self._part(victim.start), [victim]
        start = victim.start - part.free_before(victim.start)
        end = victim.end + part.free_from(victim.end)
        while end - start < size:
            after = self.at(end) if end not in self._starts else None
            before = self._ending_at(start) if start not in self._starts else None
            if after is not None and after.evictable and may_take(after):
                found.append(after)
                end = after.end + part.free_from(after.end)
            elif before is not None and before.evictable and may_take(before):
                found.append(before)
                start = before.start - part.free_before(before.start)
            else:
                return []
        return found

    def _ending_at(self, end: int) -> Entry | None:
        """What occupies the bytes before `end`. Slots have few sizes: one a layout."""
        for size in self._by_size:
            entry = self.at(end - size)
            if entry is not None and entry.slot_bytes == size:
                return entry
        return None

    def _part(self, offset: int) -> Extents:
        return self._parts[bisect_right(self._starts, offset) - 1]

    def _preferred(self, near: int | None) -> list[Extents]:
        """The parts in the order in which they are tried."""
        first = None if near is None else self._parts[near]
        return sorted(self._parts, key=lambda part: (part is not first, -part.free_bytes))

    def _free_vacated(self) -> None:
        for entry in self._vacated[-_FREED_A_CALL:]:
            self._give(entry)
        del self._vacated[-_FREED_A_CALL:]

    def _give(self, entry: Entry) -> None:
        del self._at[entry.start // _REGION_BYTES][entry.start]
        self._by_size[entry.slot_bytes] -= 1
        if not self._by_size[entry.slot_bytes]:
            del self._by_size[entry.slot_bytes]
        self._part(entry.start).give(entry.start, entry.slot_bytes)


def _take(parts: Sequence[Extents], size: int) -> int | None:
    """From the first part that has it."""
    for part in parts:
        start = part.take(size)
        if start is not None:
            return start
    return None
