"""What was asked for again goes later than what was stored once; how much later is learned."""

from collections.abc import Iterable

from sidecar.cache.entry import Entry, Heat
from sidecar.cache.order import Order
from sidecar.cache.policies.history import History
from sidecar.cache.policy import ABOVE_COLD

# In cache-fuls of uses.
_FIRST_LEAD, _LONGEST_LEAD = 1.0, 16.0
_STEP = 10.0  # a whole cache-ful that had to go and came back moves the lead by so much
_REMEMBERED = 4  # for each object that is here, so many that had to go


class ARC(Order):
    """Adaptive replacement (Megiddo and Modha, FAST '03) for sequences.

    As there, objects that were used once and those that were used again are two LRU lists, what
    had to go is remembered, and each that comes back tells which list had too little. There the
    lists' lengths are learned, and the head of a prompt, used again, could go before its tail, used
    once. Here it is a lead in time: what was used again counts as used by that much later. So there
    is one order, in which a head never has less than its tail.
    """

    def __init__(self) -> None:
        super().__init__()
        self._uses = 0
        self._last_hot = 0
        self._lead = _FIRST_LEAD
        self._size = self._most = 0
        self._history = History()

    def next_place(self, entry: Entry) -> int:
        """Even numbers are of those used once, odd ones of the hot: so they stay distinct."""
        self._uses += 1
        if entry.heat is not Heat.HOT:
            return self._uses << 1 | (ABOVE_COLD if entry.heat is Heat.WARM else 0)
        place = (self._uses + int(self._lead * self._most)) << 1 | 1
        self._last_hot = max(self._last_hot + 2, place)
        return self._last_hot | ABOVE_COLD

    def add(self, entry: Entry) -> None:
        super().add(entry)
        self._size += 1
        self._most = max(self._most, self._size)

    def remove(self, entry: Entry) -> None:
        super().remove(entry)
        self._size -= 1

    def evicted(self, entry: Entry) -> None:
        if entry.place >= ABOVE_COLD:
            self._history.make_room(_REMEMBERED * self._most)
            self._history.add(entry, hot=bool(entry.place & 1))

    def recalls(self, entry: Entry) -> bool:
        """Learns from it: the more of its kind had to go, the less one that comes back tells."""
        remembered = sum(self._history.count.values())
        of_kind = dict(self._history.count)
        hot = self._history.take(entry)
        if hot is None:
            return False
        step = _STEP / max(1, self._most) * remembered / of_kind[hot]
        self._lead = min(_LONGEST_LEAD, max(0.0, self._lead + (step if hot else -step)))
        return True

    def clear(self) -> None:
        super().clear()
        self._size = 0

    def candidates(self) -> Iterable[Entry]:
        return self
