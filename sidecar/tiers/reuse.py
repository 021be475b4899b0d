"""Which objects are worth a place in L2: those that somebody has come back for."""

from collections.abc import Iterable

from sidecar.cache.entry import Entry, Heat
from sidecar.cache.policies.history import History

_REMEMBERED = 1 << 20  # objects, 8 bytes each


class Reuse:
    """Remembers what was stored, so that it knows what is stored again.

    An object that has been found in the L1 is hot. One that had to go before that is stored
    again, and then it counts.
    """

    def __init__(self) -> None:
        self._stored = History()
        self._stored.make_room(_REMEMBERED)

    def again(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of what was stored just now that are no news."""
        return [entry for entry in entries if self._is_known(entry) or is_hot(entry)]

    def _is_known(self, entry: Entry) -> bool:
        known = self._stored.take(entry) is not None
        self._stored.add(entry, hot=False)
        return known


def is_hot(entry: Entry) -> bool:
    """Whether a lookup has found it."""
    return entry.heat is Heat.HOT
