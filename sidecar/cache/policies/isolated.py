"""Each tenant in an order of its own."""

from collections import Counter
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace

from sidecar.cache.entry import Entry
from sidecar.cache.order import Order
from sidecar.cache.policy import EvictionPolicy
from sidecar.cache.quotas import Quotas

_GROWN = 1.05  # what has changed by less need not be known
_SUPERSEDED = 64


class Isolated:
    """Room is taken from the salt that has most of its limit, or from who needs the room.

    So what a salt has within its quota is its own where the quotas together fit into the L1, and
    salts without one share the rest evenly. `policy` gives the places.
    """

    def __init__(self, policy: EvictionPolicy, quotas: Quotas) -> None:
        self._policy = policy
        self.quotas = quotas
        self._orders: dict[str, Order] = {}
        # Salts by their share, the largest first; one that is not the last known is superseded.
        self._heap: list[tuple[float, str]] = []
        self._known: dict[str, float] = {}

    def next_place(self, entry: Entry) -> int:
        return self._policy.next_place(entry)

    def evicted(self, entry: Entry) -> None:
        self._policy.evicted(entry)

    def recalls(self, entry: Entry) -> bool:
        return self._policy.recalls(entry)

    def add(self, entry: Entry) -> None:
        self._policy.add(entry)
        salt = entry.space.key.cache_salt
        order = self._orders.get(salt)
        if order is None:
            order = self._orders[salt] = Order()
        order.add(entry)
        share = self.quotas.share(salt)
        if share > self._known.get(salt, 0.0) * _GROWN:
            self._note(salt, share)

    def remove(self, entry: Entry) -> None:
        self._policy.remove(entry)
        salt = entry.space.key.cache_salt
        order = self._orders[salt]
        order.remove(entry)
        if not order:
            del self._orders[salt]
            self._known.pop(salt, None)

    def clear(self) -> None:
        self._policy.clear()
        self._orders.clear()
        self._heap.clear()
        self._known.clear()

    def candidates(self) -> Iterator[Entry]:
        heaviest = self._heaviest()
        if heaviest is None:
            return
        yield from self._orders[heaviest]
        others = self._orders.keys() - {heaviest}
        for salt in sorted(others, key=self.quotas.share, reverse=True):
            yield from self._orders[salt]

    def candidates_for(self, salt: str, size: int) -> Iterator[Entry]:
        """What may go when `salt` needs `size` bytes: of whoever has most of the limit, or its own.

        Never of one that has no more of its limit than the salt will have: who asks for much then
        stores less.
        """
        heaviest, own = self._heaviest(), self.quotas.share(salt, size)
        if heaviest is None or heaviest == salt or self.quotas.share(heaviest) <= own:
            yield from self.candidates_of(salt)
            return
        yield from self._orders[heaviest]
        heavier = [s for s in self._orders if s != heaviest and self.quotas.share(s) > own]
        for each in (*sorted(heavier, key=self.quotas.share, reverse=True), salt):
            yield from self.candidates_of(each)

    def taking_for(self, salt: str, size: int) -> Callable[[Entry], bool]:
        """Whether one object more may go with those asked about before, for `salt` as above."""
        own, taken = self.quotas.share(salt, size), Counter[str]()

        def may_take(entry: Entry) -> bool:
            other = entry.space.key.cache_salt
            if other != salt and self.quotas.share(other, -taken[other]) <= own:
                return False
            taken[other] += entry.slot_bytes
            return True

        return may_take

    def candidates_of(self, salt: str) -> Iterator[Entry]:
        """What one salt may lose, the least valuable first."""
        return iter(self._orders.get(salt, ()))

    def _heaviest(self) -> str | None:
        """The salt that has most of its limit, among those that can lose something."""
        while self._heap:
            negative, salt = self._heap[0]
            if self._known.get(salt) != -negative:
                heappop(self._heap)
                continue
            share = self.quotas.share(salt)
            if share * _GROWN >= -negative:
                return salt
            self._known[salt] = share
            heapreplace(self._heap, (-share, salt))
        return None

    def _note(self, salt: str, share: float) -> None:
        self._known[salt] = share
        heappush(self._heap, (-share, salt))
        if len(self._heap) > 2 * len(self._known) + _SUPERSEDED:
            self._heap = [(-share, salt) for salt, share in self._known.items()]
            heapify(self._heap)
