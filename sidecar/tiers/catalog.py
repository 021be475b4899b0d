"""What one backend is known to have, in the order of last use, and how full it is."""

from collections import OrderedDict
from collections.abc import Iterable

from sidecar.tiers.base import Found
from sidecar.tiers.names import ObjectName
from sidecar.tiers.settings import Eviction


class Catalog:
    """Names and record sizes of a backend's objects, the least recently used first.

    `used_bytes` also counts what is being written. With a `capacity`, room is made by giving
    up what was not used for longest. For one thread.
    """

    def __init__(self, capacity: int | None, eviction: Eviction) -> None:
        self.used_bytes = 0
        self._sizes: OrderedDict[ObjectName, int] = OrderedDict()
        self._recovered: dict[ObjectName, None] = {}
        self._evicts = eviction.eviction_policy == "LRU"
        self._limit = None if capacity is None else int(capacity * eviction.trigger_watermark)
        self._surplus = int((capacity or 0) * eviction.eviction_ratio)

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, name: ObjectName) -> bool:
        return name in self._sizes

    def names(self) -> list[ObjectName]:
        """All of them, the least recently used first."""
        return list(self._sizes)

    def size(self, name: ObjectName) -> int:
        """The record's size in bytes, 0 if it is not known."""
        return self._sizes.get(name, 0)

    def add(self, name: ObjectName, size: int) -> None:
        """It is there, as of now; `size` 0 if unknown."""
        self.used_bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        self._recovered.pop(name, None)

    def touch(self, name: ObjectName) -> None:
        """It was used now."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
            self._recovered.pop(name, None)

    def remove(self, name: ObjectName) -> bool:
        """It is not there any more; whether it was known."""
        size = self._sizes.pop(name, None)
        self.used_bytes -= size or 0
        self._recovered.pop(name, None)
        return size is not None

    def clear(self) -> None:
        self._sizes.clear()
        self._recovered.clear()
        self.used_bytes = 0

    def recover(self, found: Iterable[Found]) -> None:
        """A scan has found these. They are older than all that was used since the start."""
        for name, size, _ in found:
            if name not in self._sizes:
                self._sizes[name] = size
                self._sizes.move_to_end(name, last=False)
                self._recovered[name] = None
                self.used_bytes += size

    def order_recovered(self, names: Iterable[ObjectName]) -> None:
        """Put recovered objects in the order of their use: `names`, the newest first."""
        for name in names:
            if name in self._recovered:
                del self._recovered[name]
                self._sizes.move_to_end(name, last=False)

    def fits(self, size: int) -> bool:
        """Whether one more record can be kept without giving anything up."""
        return self._limit is None or self.used_bytes + size <= self._limit

    def make_room(self, size: int, busy: Iterable[ObjectName]) -> list[ObjectName]:
        """Give up what has to go so that `size` bytes fit, none of `busy`; as far as it can."""
        if self.fits(size) or self._limit is None:
            return []
        return self.give_up(self.used_bytes + size + self._surplus - self._limit, busy)

    def give_up(self, size: int, busy: Iterable[ObjectName]) -> list[ObjectName]:
        """Give up the least recently used objects that take `size` bytes, none of `busy`."""
        if not self._evicts:
            return []
        spared, found = set(busy), []
        for name, taken in self._sizes.items():
            if size <= 0:
                break
            if name not in spared:
                found.append(name)
                size -= taken
        for name in found:
            self.remove(name)
        return found
