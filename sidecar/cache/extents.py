"""Allocator of byte ranges: best fit over free extents, neighbours merged when freed.

Objects have few distinct sizes (one a layout), so an exact fit is the common case and costs
dict operations only. Best fit also means that freed, warm memory is used before fresh.
"""

from bisect import bisect_left, insort


class Extents:
    """Free ranges of an arena. Starts empty; memory arrives by `give`."""

    def __init__(self) -> None:
        self._size_at: dict[int, int] = {}
        self._start_ending_at: dict[int, int] = {}
        self._starts_of_size: dict[int, dict[int, None]] = {}
        self._sizes: list[int] = []
        self.free_bytes = 0

    def take(self, size: int) -> int | None:
        """The start of a range of `size` bytes, None if no free extent is that large."""
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes):
            return None
        extent = self._sizes[at]
        start = next(reversed(self._starts_of_size[extent]))  # the front fills with holes
        self._remove(start, extent)
        if extent > size:
            self._add(start + size, extent - size)
        return start

    def give(self, start: int, size: int) -> None:
        """Free `[start, start + size)`, which must be in use or new.

        Raises AssertionError where it is seen to be free: at the edge of what is. (A range amid
        what is free has no owner, and `Slots` frees for owners only.)
        """
        if start in self._size_at or start + size in self._start_ending_at:
            raise AssertionError(f"[{start}, {start + size}) is free already")
        before = self._start_ending_at.get(start)
        if before is not None:
            self._remove(before, start - before)
            start, size = before, size + start - before
        after = self._size_at.get(start + size)
        if after is not None:
            self._remove(start + size, after)
            size += after
        self._add(start, size)

    def free_from(self, start: int) -> int:
        """How many bytes are free from `start` on; 0 if no free extent begins there."""
        return self._size_at.get(start, 0)

    def free_before(self, end: int) -> int:
        """How many bytes are free right before `end`."""
        return end - self._start_ending_at.get(end, end)

    def ranges(self) -> list[tuple[int, int]]:
        """The free extents as (start, size), in address order."""
        return sorted(self._size_at.items())

    def _add(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_ending_at[start + size] = start
        starts = self._starts_of_size.get(size)
        if starts is None:
            starts = self._starts_of_size[size] = {}
            insort(self._sizes, size)
        starts[start] = None
        self.free_bytes += size

    def _remove(self, start: int, size: int) -> None:
        del self._size_at[start]
        del self._start_ending_at[start + size]
        starts = self._starts_of_size[size]
        del starts[start]
        if not starts:
            del self._starts_of_size[size]
            del self._sizes[bisect_left(self._sizes, size)]
        self.free_bytes -= size
