"""What one backend is known to have, in the order of last use, and how full it is."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from msgspec import Struct

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.quotas import UNLIMITED
from sidecar.tiers.base import Found
from sidecar.tiers.names import ObjectName, parse_space
from sidecar.tiers.settings import EvictionSettings
from sidecar.tiers.tenants import Tenants, salt_of
from sidecar.tiers.use_order import UseOrder


class Doomed(Struct, gc=False):
    """An object that is to go, of `size` bytes; `reason` why it is bad, None if it is not.

    `failed`: it could not be removed so far.
    """

    size: int
    reason: str | None
    failed: bool = False


class Catalog:
    """Names and record sizes of a backend's objects, the least recently used first.

    With a `capacity`, room is made by giving up what was not used for longest. What is given
    up is not found any more, and `doomed` until it is gone. `reserved` bytes are being written,
    `left_over` bytes are of earlier epochs and cannot be removed. For one thread.
    """

    def __init__(self, capacity: int | None, eviction: EvictionSettings, changes: Changes) -> None:
        self._changes = changes
        self.reserved = self.left_over = 0
        self.doomed: dict[ObjectName, Doomed] = {}
        # Not what is wanted, or could not be read: to be stored again when there is a chance.
        self.suspects: set[ObjectName] = set()
        self._order = UseOrder()
        self._spaces: Counter[str] = Counter()
        self._kept_bytes = self._stuck_bytes = 0
        self._evicts = eviction.eviction_policy != "noop"
        is_isolated = eviction.eviction_policy == "IsolatedLRU"
        self.tenants = Tenants(capacity or UNLIMITED) if is_isolated else None
        self._limit = None if capacity is None else int(capacity * eviction.trigger_watermark)
        self._surplus = int((capacity or 0) * eviction.eviction_ratio)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: ObjectName) -> bool:
        return name in self._order

    @property
    def leaving(self) -> int:
        """How many objects are still to be removed."""
        return len(self.doomed)

    @property
    def used_bytes(self) -> int:
        """What is kept, what is being written, and what could not be removed."""
        return self._kept_bytes + self.reserved + self._stuck_bytes + self.left_over

    @property
    def is_stuck(self) -> bool:
        """Whether something that is to go could not be removed so far."""
        return bool(self._stuck_bytes)

    def names(self) -> list[ObjectName]:
        """All of them, the least recently used first."""
        return self._order.names()

    def spaces(self) -> list[str]:
        """The spaces that something is in."""
        return list(self._spaces)

    def size(self, name: ObjectName) -> int:
        """The record's size in bytes, 0 if it is not known. Any thread."""
        return self._order.size(name) or 0

    def add(self, name: ObjectName, size: int) -> None:
        """It is there, as of now, whatever was there before; `size` 0 if unknown."""
        self.remove(name)
        self._order.add(name, size)
        self._spaces[name.space] += 1
        self._kept_bytes += size
        if self.tenants is not None:
            self.tenants.add(name, size)
        self._tell([name], stored=True)

    def touch(self, name: ObjectName) -> None:
        """It was used now."""
        if name in self._order:
            self._move(name, last=True)

    def touch_sequence(self, names: Sequence[ObjectName]) -> None:
        """These were used together, a prompt's in its order: the head is to outlive the tail."""
        for name in reversed(names):
            self.touch(name)

    def distrust(self, name: ObjectName) -> None:
        """If it is there, what is stored under this name next takes its place."""
        if name in self._order:
            self.suspects.add(name)

    def is_leaving(self, name: ObjectName) -> bool:
        """Whether it is to be removed, or to be stored anew before that."""
        return name in self.doomed

    def sweep(self) -> UseOrder:
        """Forget everything: all that was there, with its size. There may be millions."""
        swept = self._order
        if self._changes.on:
            self._tell(swept.names(), stored=False)
        for name, doomed in self.doomed.items():
            swept.add(name, doomed.size)
        self._order, self._kept_bytes, self._stuck_bytes = UseOrder(), 0, 0
        self._spaces.clear()
        if self.tenants is not None:
            self.tenants.clear()
        self.suspects.clear()
        self.doomed.clear()
        return swept

    def remove(self, name: ObjectName) -> bool:
        """It is not there any more; whether it was known."""
        doomed = self.doomed.pop(name, None)
        if doomed is not None and doomed.failed:
            self._stuck_bytes -= doomed.size
        was_known = self._forget(name) is not None
        if was_known:
            self._tell([name], stored=False)
        return was_known

    def doom(self, name: ObjectName, reason: str | None = None) -> None:
        """It is to be removed, known or not."""
        if self._doom(name, reason):
            self._tell([name], stored=False)

    def stuck(self, name: ObjectName) -> bool:
        """A doomed object could not be removed; whether it still is to be."""
        doomed = self.doomed.get(name)
        if doomed is not None and not doomed.failed:
            doomed.failed = True
            self._stuck_bytes += doomed.size
        return doomed is not None

    def recover(self, found: Iterable[Found]) -> None:
        """A scan has found these. They are older than all that was used since the start."""
        new = []
        for name, size, _ in found:
            if name not in self._order and not self.is_leaving(name):
                self._order.add_oldest(name, size)
                self._spaces[name.space] += 1
                if self.tenants is not None:
                    self.tenants.add(name, size)
                    self.tenants.move(name, last=False)
                self._kept_bytes += size
                new.append(name)
        self._tell(new, stored=True)

    def order_recovered(self, names: Iterable[ObjectName]) -> None:
        """Put recovered objects in the order of their use: `names`, the newest first."""
        for name in names:
            if self._order.is_old(name):
                self._move(name, last=False)

    def fits(self, size: int) -> bool:
        """Whether one more record can be kept without giving anything up."""
        return self._limit is None or self.used_bytes + size <= self._limit

    def make_room(self, size: int, busy: Iterable[ObjectName]) -> list[ObjectName]:
        """Doom what has to go so that `size` bytes fit, none of `busy`; as far as it can."""
        if self.fits(size) or self._limit is None:
            return []
        return self.give_up(self.used_bytes + size + self._surplus - self._limit, busy)

    def give_up(self, size: int, busy: Iterable[ObjectName]) -> list[ObjectName]:
        """Doom the least valuable objects that take `size` bytes, none of `busy`."""
        if not self._evicts:
            return []
        if self.tenants is not None:
            return self._doom_all(self.tenants.victims(size, set(busy)))
        return self._doom_all(_first(self._order, size, set(busy)))

    def has_quota(self, name: ObjectName, size: int) -> bool:
        """Whether one more record is within the quota of whose it is."""
        return self.tenants is None or self.tenants.quotas.has_room(salt_of(name.space), size)

    def keep_quota(
        self, salt: str, size: int, busy: Iterable[ObjectName], most: int | None = None
    ) -> list[ObjectName]:
        """Doom what has to go so that `size` more bytes are within the salt's quota: its own, at
        most `most` objects, none of `busy`."""
        if self.tenants is None or size > self.tenants.quotas.limit(salt):
            return []
        too_much = self.tenants.quotas.used(salt) + size - self.tenants.quotas.limit(salt)
        found = _first(islice(self.tenants.of(salt), most), too_much, set(busy))
        return self._doom_all(found)

    def _doom_all(self, names: list[ObjectName]) -> list[ObjectName]:
        self._tell([name for name in names if self._doom(name, None)], stored=False)
        return names

    def _doom(self, name: ObjectName, reason: str | None) -> bool:
        """Whether it was known."""
        size = self._forget(name)
        if name not in self.doomed:
            self.doomed[name] = Doomed(size or 0, reason)
        return size is not None

    def _move(self, name: ObjectName, last: bool) -> None:
        self._order.move(name, last)
        if self.tenants is not None:
            self.tenants.move(name, last)

    def _forget(self, name: ObjectName) -> int | None:
        size = self._order.remove(name)
        if size is None:
            return None
        self._kept_bytes -= size
        if self.tenants is not None:
            self.tenants.remove(name)
        self._spaces[name.space] -= 1
        if not self._spaces[name.space]:
            del self._spaces[name.space]
        self.suspects.discard(name)
        return size

    def _tell(self, names: Sequence[ObjectName], stored: bool) -> None:
        """Note a change, where the name of the space tells whose objects these are."""
        if not self._changes.on:
            return
        tell = self._changes.stored if stored else self._changes.removed
        by_space: dict[str, list[bytes]] = {}
        for name in names:
            by_space.setdefault(name.space, []).append(name.hash)
        for space, hashes in by_space.items():
            if (key := parse_space(space)) is not None:
                tell(Medium.STORAGE, key, hashes)


def _first(
    items: Iterable[tuple[ObjectName, int]], size: int, spared: set[ObjectName]
) -> list[ObjectName]:
    """The first names that together have `size` bytes, none of `spared`."""
    found = []
    for name, taken in items:
        if size <= 0:
            break
        if name not in spared:
            found.append(name)
            size -= taken
    return found
