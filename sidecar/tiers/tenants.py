"""The objects of one backend by tenant, for backends that keep tenants apart."""

from collections.abc import Collection, Iterator
from functools import lru_cache

from sidecar.cache.quotas import Quotas
from sidecar.tiers.names import ObjectName, parse_space
from sidecar.tiers.use_order import UseOrder

_TAKEN_IN_TURN = 16


class Tenants:
    """Names by salt, each salt's in the order of last use; `quotas` counts what each has."""

    def __init__(self, capacity: int) -> None:
        self.quotas = Quotas(capacity)
        self._orders: dict[str, UseOrder] = {}

    def add(self, name: ObjectName, size: int) -> None:
        """It was used now; it is not there yet."""
        salt = salt_of(name.space)
        self._orders.setdefault(salt, UseOrder()).add(name, size)
        self.quotas.occupy(salt, size)

    def move(self, name: ObjectName, last: bool) -> None:
        """It was used now, or before all others."""
        self._orders[salt_of(name.space)].move(name, last)

    def remove(self, name: ObjectName) -> None:
        """It is not there any more."""
        salt = salt_of(name.space)
        order = self._orders[salt]
        self.quotas.free(salt, order.remove(name) or 0)
        if not order:
            del self._orders[salt]

    def clear(self) -> None:
        """Nothing is there any more."""
        for salt in self.quotas.salts():
            self.quotas.free(salt, self.quotas.used(salt))
        self._orders.clear()

    def of(self, salt: str) -> Iterator[tuple[ObjectName, int]]:
        """What one salt may lose, with its size, what was not used for longest first."""
        return iter(self._orders.get(salt, ()))

    def victims(self, size: int, spared: Collection[ObjectName]) -> list[ObjectName]:
        """What has to go for `size` bytes: of the salt that has most of its limit, in turns."""
        found: list[ObjectName] = []
        left = {salt: self.of(salt) for salt in self._orders}
        taken = dict.fromkeys(left, 0)
        while left and size > 0:
            salt = max(left, key=lambda salt: self._share(salt, taken[salt]))
            for _ in range(_TAKEN_IN_TURN):
                name, of_name = next(left[salt], (None, 0))
                if name is None:
                    del left[salt]
                    break
                if name not in spared:
                    found.append(name)
                    taken[salt] += of_name
                    size -= of_name
                if size <= 0:
                    break
        return found

    def _share(self, salt: str, taken: int) -> float:
        return (self.quotas.used(salt) - taken) / max(1, self.quotas.limit(salt))


@lru_cache(maxsize=4096)
def salt_of(space: str) -> str:
    """Whose objects are in the space of this name. Of one that is a digest it cannot be told: it
    is a tenant by itself."""
    key = parse_space(space)
    return space if key is None else key.cache_salt
