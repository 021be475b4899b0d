"""Objects by their place, the first one first: any of them goes and comes back in a few steps.

A hold takes an object out of the order of eviction and its end puts it back at the same place,
thousands of times a second, wherever that place is. So places are numbers in buckets, and which
buckets have something in them is known from a tree of bit sets, 2**_WIDTH_BITS bits a node.
"""

from collections.abc import Iterator

from sidecar.cache.entry import Entry

_BUCKET_PLACES = 85  # as many as a dictionary of 128 slots takes
_WIDTH_BITS, _LEVELS = 12, 4  # for places below 2**54
_WIDTH_MASK = (1 << _WIDTH_BITS) - 1


class Order:
    """Entries by `place`: distinct numbers in [0, 2**54), which do not change while they are in."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[int, Entry]] = {}
        self._levels: list[dict[int, int]] = [{} for _ in range(_LEVELS)]

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, entry: Entry) -> None:
        """Put `entry` in; nothing else has its place."""
        at = entry.place // _BUCKET_PLACES
        bucket = self._buckets.get(at)
        if bucket is None:
            self._buckets[at] = {entry.place: entry}
            self._mark(at)
        else:
            bucket[entry.place] = entry

    def remove(self, entry: Entry) -> None:
        """Take `entry` out. Raises KeyError if it is not in."""
        at = entry.place // _BUCKET_PLACES
        bucket = self._buckets[at]
        del bucket[entry.place]
        if not bucket:
            del self._buckets[at]
            self._unmark(at)

    def clear(self) -> None:
        self._buckets.clear()
        for level in self._levels:
            level.clear()

    def __iter__(self) -> Iterator[Entry]:
        """By place. To be begun anew when something has been taken out or put in."""
        at = self._lowest(_LEVELS, 0) if self._buckets else None
        while at is not None:
            bucket = self._buckets[at]
            for place in sorted(bucket):
                yield bucket[place]
            at = self._next(at)

    def _mark(self, at: int) -> None:
        for level in self._levels:
            bit, at = 1 << (at & _WIDTH_MASK), at >> _WIDTH_BITS
            bits = level.get(at, 0)
            level[at] = bits | bit
            if bits:
                return

    def _unmark(self, at: int) -> None:
        for level in self._levels:
            bit, at = 1 << (at & _WIDTH_MASK), at >> _WIDTH_BITS
            bits = level[at] & ~bit
            if bits:
                level[at] = bits
                return
            del level[at]

    def _lowest(self, height: int, at: int) -> int:
        """The first bucket below the node `at`, which has one, of a level."""
        for level in reversed(self._levels[:height]):
            bits = level[at]
            at = at << _WIDTH_BITS | (bits & -bits).bit_length() - 1
        return at

    def _next(self, at: int) -> int | None:
        """The bucket behind `at`."""
        for height, level in enumerate(self._levels):
            behind = at + 1
            bits = level.get(behind >> _WIDTH_BITS, 0) >> (behind & _WIDTH_MASK)
            if bits:
                return self._lowest(height, behind + (bits & -bits).bit_length() - 1)
            at >>= _WIDTH_BITS
        return None
