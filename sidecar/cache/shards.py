"""A dictionary that never stands still to grow."""

from collections.abc import Iterator, MutableMapping
from itertools import chain
from typing import TypeVar, overload

K = TypeVar("K")
T = TypeVar("T")
D = TypeVar("D")
_SPLIT_AT = 1 << 15  # items: moved in a few milliseconds, once
_SHARDS = 1 << 10  # a power of two; each as large as that with 2**25 items


class Shards(MutableMapping[K, T]):
    """Items by keys whose hashes are as good as random.

    A dictionary moves all that it has when it grows: with a million objects that takes 100 ms, on
    the only thread that serves everyone. So a large one is many small ones.
    """

    __slots__ = ("_count", "_mask", "_shards")

    def __init__(self) -> None:
        self._shards: list[dict[K, T]] = [{}]
        self._mask = 0
        self._count = 0

    def __getitem__(self, key: K) -> T:
        return self._shards[hash(key) & self._mask][key]

    @overload
    def get(self, key: K, default: None = None) -> T | None: ...
    @overload
    def get(self, key: K, default: D) -> T | D: ...
    def get(self, key: K, default: D | None = None) -> T | D | None:
        return self._shards[hash(key) & self._mask].get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._shards[hash(key) & self._mask]

    def __setitem__(self, key: K, value: T) -> None:
        shard = self._shards[hash(key) & self._mask]
        self._count += key not in shard
        shard[key] = value
        if self._count > _SPLIT_AT and not self._mask:
            self._split()

    def __delitem__(self, key: K) -> None:
        del self._shards[hash(key) & self._mask][key]
        self._count -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[K]:
        return (key for shard in self._shards for key in shard)

    def snapshot(self) -> Iterator[K]:
        """Keys, read bit by bit: each that stays until the end comes once; others may come."""
        return (key for shard in tuple(self._shards) for key in tuple(shard))

    def all_values(self) -> Iterator[T]:
        """As `values`, at the speed of a dictionary."""
        return chain.from_iterable(shard.values() for shard in self._shards)

    def _split(self) -> None:
        (whole,) = self._shards
        self._mask = _SHARDS - 1
        self._shards = [{} for _ in range(_SHARDS)]
        for key, value in whole.items():
            self._shards[hash(key) & self._mask][key] = value
