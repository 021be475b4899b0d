"""How much of a tier each tenant has, and may have. A tenant is a cache salt."""

import math
from collections.abc import Iterator, Mapping

UNLIMITED = 1 << 62  # the capacity of a tier that has none


class Quotas:
    """Bytes by salt in one tier, and the limits of those that have one.

    A salt without a quota may have the whole tier, of `capacity` bytes.
    """

    def __init__(self, capacity: int, limits: Mapping[str, int] | None = None) -> None:
        self.capacity = capacity
        self.limits = dict(limits or {})
        self._used: dict[str, int] = {}

    def occupy(self, salt: str, size: int) -> None:
        """`size` bytes more are the salt's."""
        self._used[salt] = self._used.get(salt, 0) + size

    def free(self, salt: str, size: int) -> None:
        """They are not any more."""
        left = self._used[salt] - size
        if left:
            self._used[salt] = left
        else:
            del self._used[salt]

    def used(self, salt: str) -> int:
        """In bytes."""
        return self._used.get(salt, 0)

    def salts(self) -> list[str]:
        """All that have something."""
        return list(self._used)

    def limit(self, salt: str) -> int:
        """In bytes."""
        return self.limits.get(salt, self.capacity)

    def share(self, salt: str, more: int = 0) -> float:
        """How much of its limit a salt has, with `more` bytes; more than 1 if it has too much."""
        limit = self.limit(salt)
        return (self.used(salt) + more) / limit if limit else math.inf

    def has_room(self, salt: str, size: int) -> bool:
        """Whether `size` more bytes are within the salt's limit."""
        return self.used(salt) + size <= self.limit(salt)

    def exceeded(self) -> Iterator[str]:
        """The salts that have more than their quota: it was lowered."""
        return (salt for salt in self.limits if not self.has_room(salt, 0))
