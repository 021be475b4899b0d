"""Names in the order of last use: there may be millions, and the wire thread never stops for them.

An OrderedDict is walked whole by every full garbage collection, and moves all that it has when it
grows. Dictionaries that hold nothing but names and records without `gc` are not walked at all.
"""

from collections.abc import Iterator
from itertools import chain

from msgspec import Struct

from sidecar.cache.shards import Shards
from sidecar.tiers.names import ObjectName

_BUCKET = 85  # names: as many as a dictionary of 128 slots takes
_SHRINK_AT = (21, 5)  # the same of 32 and of 8


class _Kept(Struct, gc=False):
    """The record's size in bytes, and the number of the bucket that its name is in."""

    size: int
    bucket: int = 0


class UseOrder:
    """Names and their sizes, the least recently used first.

    They are in buckets, small dictionaries: `_newer` ones with numbers from 0 on, and `_older` ones
    with numbers below. The latter are in reverse, as is what is in them: what is older than
    everything comes last there. For one thread, but for `size`.
    """

    def __init__(self) -> None:
        self._kept: Shards[ObjectName, _Kept] = Shards()
        self._newer: dict[int, dict[ObjectName, _Kept]] = {}
        self._older: dict[int, dict[ObjectName, _Kept]] = {}
        self._newest, self._oldest = 0, -1

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: ObjectName) -> bool:
        return name in self._kept

    def __iter__(self) -> Iterator[tuple[ObjectName, int]]:
        older = (reversed(bucket.items()) for bucket in reversed(self._older.values()))
        newer = (bucket.items() for bucket in self._newer.values())
        for name, kept in chain.from_iterable(chain(older, newer)):
            yield name, kept.size

    def names(self) -> list[ObjectName]:
        older = (reversed(bucket) for bucket in reversed(self._older.values()))
        return list(chain.from_iterable(chain(older, self._newer.values())))

    def size(self, name: ObjectName) -> int | None:
        """None if it is not there."""
        kept = self._kept.get(name)
        return None if kept is None else kept.size

    def add(self, name: ObjectName, size: int) -> None:
        """It was used now; it is not there yet."""
        kept = self._kept[name] = _Kept(size)
        self._append(name, kept)

    def add_oldest(self, name: ObjectName, size: int) -> None:
        """It was used before all others; it is not there yet."""
        kept = self._kept[name] = _Kept(size)
        self._prepend(name, kept)

    def move(self, name: ObjectName, last: bool) -> None:
        """It was used now, or before all others."""
        kept = self._kept[name]
        self._take_out(name, kept)
        (self._append if last else self._prepend)(name, kept)

    def is_old(self, name: ObjectName) -> bool:
        """Whether it is there, and was not used since it was older than all others."""
        kept = self._kept.get(name)
        return kept is not None and kept.bucket < 0

    def remove(self, name: ObjectName) -> int | None:
        """Its size; None if it was not there."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        del self._kept[name]
        self._take_out(name, kept)
        return kept.size

    def popitem(self) -> tuple[ObjectName, int]:
        """Take one out, whichever is at hand. Raises KeyError if there is none."""
        half = self._newer or self._older
        number, bucket = half.popitem()
        name, kept = bucket.popitem()
        if bucket:
            half[number] = bucket
        del self._kept[name]
        return name, kept.size

    def _append(self, name: ObjectName, kept: _Kept) -> None:
        bucket = self._newer.get(self._newest)
        if bucket is None or len(bucket) >= _BUCKET:
            self._newest += 1
            bucket = self._newer[self._newest] = {}
        kept.bucket = self._newest
        bucket[name] = kept

    def _prepend(self, name: ObjectName, kept: _Kept) -> None:
        bucket = self._older.get(self._oldest)
        if bucket is None or len(bucket) >= _BUCKET:
            self._oldest -= 1
            bucket = self._older[self._oldest] = {}
        kept.bucket = self._oldest
        bucket[name] = kept

    def _take_out(self, name: ObjectName, kept: _Kept) -> None:
        half = self._newer if kept.bucket >= 0 else self._older
        bucket = half[kept.bucket]
        del bucket[name]
        if not bucket:
            del half[kept.bucket]
        elif len(bucket) in _SHRINK_AT:  # else one that stays would keep the room of all
            half[kept.bucket] = dict(bucket)
