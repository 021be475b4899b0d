"""What an operator has had protected for a time, such as a system prompt: not evicted until then.

A share of the L1 at the most, and never for ever.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sidecar.cache.entry import Entry, State
from sidecar.cache.holds import Holds


class TooMuchToProtect(LookupError):
    """More than may be protected, with the reason."""


@dataclass(eq=False, slots=True)
class Protection:
    """Some objects of one sequence, until `deadline` on the cache's clock."""

    id: str
    entries: list[Entry]
    deadline: float

    @property
    def nbytes(self) -> int:
        """Of the arena, headers included."""
        return sum(entry.slot_bytes for entry in self.entries)


class Protections:
    """All of them, by id; together they have at most `limit` bytes of the L1.

    Each entry has one lease for all protections that name it.
    """

    def __init__(self, holds: Holds, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._holds = holds
        self._by_id: dict[str, Protection] = {}
        self._named: Counter[Entry] = Counter()  # in how many protections

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Protection]:
        return iter(list(self._by_id.values()))

    def entries(self) -> Iterable[Entry]:
        """All that is protected, each once."""
        return self._named.keys()

    def add(self, id: str, entries: Iterable[Entry], deadline: float) -> Protection:
        """Protect these, which are ready, under a new id. Raises TooMuchToProtect: then none is."""
        added = Protection(id, list(dict.fromkeys(entries)), deadline)
        more = sum(entry.slot_bytes for entry in added.entries if not self._named[entry])
        if self.nbytes + more > self.limit:
            raise TooMuchToProtect(
                f"{more} bytes more than the {self.nbytes} that are protected are over the limit "
                f"of {self.limit}"
            )
        for entry in added.entries:
            if not self._named[entry]:
                self._holds.lease(entry)
            self._named[entry] += 1
        self.nbytes += more
        self._by_id[id] = added
        return added

    def remove(self, id: str) -> bool:
        """Whether there was one of this id."""
        removed = self._by_id.pop(id, None)
        if removed is not None:
            self._let_go(removed.entries)
        return removed is not None

    def expire(self, now: float) -> None:
        """End those past their deadline, and let go of what was cleared meanwhile."""
        for each in self:
            gone = [entry for entry in each.entries if entry.state is not State.READY]
            if gone:
                each.entries = [entry for entry in each.entries if entry.state is State.READY]
                self._let_go(gone)
            if each.deadline <= now or not each.entries:
                self.remove(each.id)

    def _let_go(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._named[entry] -= 1
            if not self._named[entry]:
                del self._named[entry]
                self.nbytes -= entry.slot_bytes
                self._holds.unlease(entry)
