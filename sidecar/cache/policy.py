"""Which object goes when room is needed: what the L1 asks of an eviction policy."""

from collections.abc import Iterable
from typing import Protocol

from sidecar.cache.entry import Entry

ABOVE_COLD = 1 << 50  # a bit of the places of all that is not cold


class EvictionPolicy(Protocol):
    """Each policy is one class in `policies/`.

    Candidates are complete, and neither leased nor pinned. A hold moves nothing: when it ends,
    an object is back at its `place`. Places are distinct numbers below 2**54, the lowest goes
    first. A sequence is given its places from its tail to its head, and a chunk's heat is never
    less than that of what follows it: a policy that gives a chunk a higher place than to all that
    had their places before, were no hotter, and follow it keeps heads longer than tails.
    """

    def next_place(self, entry: Entry) -> int:
        """Where `entry`, which is no candidate at the moment, belongs when it is used now."""

    def add(self, entry: Entry) -> None:
        """`entry` has become evictable."""

    def remove(self, entry: Entry) -> None:
        """`entry` is gone, or not evictable any more."""

    def evicted(self, entry: Entry) -> None:
        """`entry`, a candidate, goes for want of room; `remove` follows."""

    def recalls(self, entry: Entry) -> bool:
        """Whether `entry`, which is new, was here before and is known to have had to go."""

    def clear(self) -> None:
        """All that was evictable is gone."""

    def candidates(self) -> Iterable[Entry]:
        """What may be evicted, the least valuable first."""
