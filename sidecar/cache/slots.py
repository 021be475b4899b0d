"""Which bytes of the arena are free, and which entry occupies the others."""

from collections.abc import Sequence

from sidecar.cache.entry import Entry
from sidecar.cache.extents import Extents

_FREED_A_CALL = 64


class Slots:
    """The slots of entries by place. `used_bytes` are those that count as occupied.

    After `vacate` slots count as free at once, and become free with the next calls of `take`:
    those of a large cache at one time would take too long.
    """

    def __init__(self) -> None:
        self.used_bytes = 0
        self._extents = Extents()
        self._at: dict[int, Entry] = {}  # whatever occupies bytes, by where it begins
        self._ending_at: dict[int, Entry] = {}
        self._vacated: list[Entry] = []

    def grow(self, offset: int, size: int) -> None:
        """`[offset, offset + size)` of the arena may be used."""
        self._extents.give(offset, size)

    def take(self, size: int) -> int | None:
        """The start of `size` free bytes, None if no free ones lie together so."""
        self._free_vacated()
        start = self._extents.take(size)
        while start is None and self._vacated:
            self._free_vacated()
            start = self._extents.take(size)
        return start

    def occupy(self, entry: Entry) -> None:
        """`entry` has the bytes that were taken for it."""
        self._at[entry.start] = self._ending_at[entry.end] = entry
        self.used_bytes += entry.end - entry.start

    def free(self, entry: Entry) -> None:
        """Nobody uses the bytes of `entry` any more."""
        self.used_bytes -= entry.end - entry.start
        self._give(entry)

    def vacate(self, entries: Sequence[Entry]) -> None:
        """The same for many; a few steps for each."""
        self.used_bytes -= sum(entry.end - entry.start for entry in entries)
        self._vacated.extend(entries)

    def evictable_around(self, victim: Entry, size: int) -> list[Entry]:
        """Objects that give `size` bytes in a row with `victim` and what is free; or none."""
        start, end, found = victim.start, victim.end, [victim]
        start -= self._extents.free_before(start)
        end += self._extents.free_from(end)
        while end - start < size:
            after = self._at.get(end)
            before = self._ending_at.get(start)
            if after is not None and after.evictable:
                found.append(after)
                end = after.end + self._extents.free_from(after.end)
            elif before is not None and before.evictable:
                found.append(before)
                start = before.start - self._extents.free_before(before.start)
            else:
                return []
        return found

    def _free_vacated(self) -> None:
        for entry in self._vacated[-_FREED_A_CALL:]:
            self._give(entry)
        del self._vacated[-_FREED_A_CALL:]

    def _give(self, entry: Entry) -> None:
        del self._at[entry.start]
        del self._ending_at[entry.end]
        self._extents.give(entry.start, entry.end - entry.start)
