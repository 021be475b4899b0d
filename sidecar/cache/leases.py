"""What lookups promised: each hit stays readable until it is retrieved, freed or expired.

A lookup that reports n chunks takes a lease on every object behind them, for as many readers
as will come. Each reader's retrieve ends its share, a free ends all shares of a range, and
the lease's own limit ends what nobody came for.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sidecar.cache.entry import MAY_PIN, Entry
from sidecar.cache.keys import SpaceKey
from sidecar.flow import Outcome

_ALL = 1 << 30  # more readers than any lookup has


class Scope(NamedTuple):
    """Whose sequence a request id speaks of; two engines may use one request id."""

    model_name: str
    world_size: int
    cache_salt: str

    @classmethod
    def of(cls, space: SpaceKey) -> "Scope":
        """That of the objects in a space."""
        return cls(space.model_name, space.world_size, space.cache_salt)


class Lookup:
    """One lookup: for each rank, the objects that stand for each chunk of the hit.

    `objects[rank][chunk]` is a tuple, one entry a layout that the model is served in;
    `readers` retrieves of each are still to come. `deadline` is on the cache's clock. While
    it is `loading`, objects may be added, and some of them may be on their way. `ended` is set
    when all has been given back, also while whoever brings objects is still at it. `weight` is
    what it takes of the room for lookups.
    """

    __slots__ = (
        "client",
        "deadline",
        "ended",
        "expected_readers",
        "hashes",
        "live",
        "loading",
        "objects",
        "readers",
        "reported",
        "request_id",
        "scope",
        "weight",
    )

    def __init__(
        self,
        client: bytes,
        request_id: str,
        scope: Scope,
        hashes: list[bytes],
        objects: list[list[tuple[Entry, ...]]],
        readers: int,
        deadline: float,
        loading: bool = False,
        weight: int = 1,
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.scope = scope
        self.hashes = hashes
        self.objects = objects
        self.expected_readers = readers
        self.readers = [[readers] * len(hashes) for _ in objects]
        self.live = len(hashes) * len(objects)
        self.deadline = deadline
        self.loading = loading
        self.weight = weight
        self.reported = False
        self.ended: Outcome[None] = Outcome()

    @property
    def hits(self) -> int:
        """The length of the hit in chunks."""
        return len(self.hashes)


class Leases:
    """The lookups of all requests that hold something. `live` counts their leases."""

    def __init__(self) -> None:
        self._lookups: dict[str, dict[bytes, Lookup]] = {}
        self._unreported: dict[Lookup, None] = {}  # the oldest first
        self._weights: Counter[bytes] = Counter()  # of each client's lookups
        self.live = 0
        self.open = 0

    @property
    def pending(self) -> int:
        """How many lookups nobody has asked for the result of yet."""
        return len(self._unreported)

    def add(self, lookup: Lookup) -> None:
        """Take the leases of `lookup`; it replaces an earlier one of the same request.

        A miss holds nothing and is not kept: an unknown request's result is a miss too.
        """
        for entry in _entries(lookup):
            entry.space.holds.lease(entry)
        old = self.find(lookup.request_id, lookup.client)
        if old is not None:
            self.end(old)
        if not (lookup.live or lookup.loading):
            return
        self._lookups.setdefault(lookup.request_id, {})[lookup.client] = lookup
        self._unreported[lookup] = None
        self.live += lookup.live
        self.open += 1
        self._weights[lookup.client] += lookup.weight

    def extend(
        self, lookup: Lookup, chunk_hash: bytes, objects: Sequence[tuple[Entry, ...]]
    ) -> None:
        """Lease one more chunk for a lookup that is loading; `objects` by rank."""
        if lookup.ended.done:
            raise RuntimeError("a lookup that has ended gets no more leases")
        lookup.hashes.append(chunk_hash)
        for rank, entries in enumerate(objects):
            lookup.objects[rank].append(entries)
            lookup.readers[rank].append(lookup.expected_readers)
            for entry in entries:
                entry.space.holds.lease(entry)
        lookup.live += len(objects)
        self.live += len(objects)

    def end_loading(self, lookup: Lookup, hits: int) -> None:
        """A lookup has ended loading: the first `hits` chunks are what it found."""
        if lookup.ended.done:
            return
        lookup.loading = False
        for rank in range(len(lookup.objects)):
            self._release(lookup, rank, range(hits, lookup.hits), readers=_ALL)
            del lookup.objects[rank][hits:]
            del lookup.readers[rank][hits:]
        del lookup.hashes[hits:]
        if not lookup.live:
            self.end(lookup)  # an unknown request's result is a miss too

    def make_room(self, client: bytes, weight: int, limit: int) -> bool:
        """Whether one more lookup of `client` fits: together they may weigh `limit`.

        One client's may weigh half of it. Lookups that nobody has asked about give way, those of
        whoever has most first, and the oldest of these; what was reported is a promise.
        """
        while self._weights[client] + weight > limit // 2:
            if not self._end_oldest_unreported(client):
                return False
        while self._weights.total() + weight > limit:
            ((heaviest, _),) = self._weights.most_common(1)
            if not self._end_oldest_unreported(heaviest):
                return False
        return True

    def find(self, request_id: str, client: bytes) -> Lookup | None:
        """What a client's request holds or waits for."""
        return self._lookups.get(request_id, {}).get(client)

    def report(self, request_id: str, client: bytes) -> int | None:
        """The hit count of a lookup that has not been reported yet, in chunks; else 0.

        None while it is loading.
        """
        lookup = self.find(request_id, client)
        if lookup is None or lookup.reported:
            return 0
        if lookup.loading:
            return None
        self._mark_reported(lookup)
        self._forget_if_over(lookup)
        return lookup.hits

    def release(
        self,
        request_id: str,
        scope: Scope,
        hashes: Sequence[bytes],
        start: int,
        readers: int,
        rank: int | None = None,
    ) -> None:
        """End `readers` shares of the chunks from `start` to the end of `hashes`.

        Of one rank, or of all (None); only of what a lookup of this very sequence leased.
        """
        lookup = self._holding(request_id, scope, hashes, start, rank or 0)
        if lookup is None:
            return
        for r in range(len(lookup.objects)) if rank is None else (rank,):
            self._release(lookup, r, range(start, len(hashes)), readers)
        self._forget_if_over(lookup)

    def promised(
        self, request_id: str, scope: Scope, hashes: Sequence[bytes], chunks: range,
        place: SpaceKey,
    ) -> list[Entry | None]:  # fmt: skip
        """By chunk, the object in the space `place` that a lookup of this sequence leased.

        None where nothing was promised to readers of this rank, or it was taken away by force.
        """
        lookup = self._holding(request_id, scope, hashes, chunks.start, place.rank)
        found: list[Entry | None] = [None] * len(chunks)
        for row, chunk in enumerate(chunks):
            if lookup is None or chunk >= lookup.hits or not lookup.readers[place.rank][chunk]:
                break
            for entry in lookup.objects[place.rank][chunk]:
                if entry.state in MAY_PIN and entry.space.key == place:
                    found[row] = entry
        return found

    def end_session(self, request_id: str, deadline: float) -> None:
        """The request is over: what it still holds may go at `deadline`, not later.

        Not at once: the last retrieves travel on other connections and may come after this.
        """
        for lookup in self._lookups.get(request_id, {}).values():
            lookup.deadline = min(lookup.deadline, deadline)

    def expire(self, now: float) -> int:
        """End the lookups past their deadline; how many leases nobody had come for."""
        return self._end_where(lambda lookup: lookup.deadline <= now)

    def lookups(self) -> Iterator[Lookup]:
        """All that hold something, or wait for it."""
        return (lookup for by_client in self._lookups.values() for lookup in by_client.values())

    def clients(self) -> set[bytes]:
        """The clients that hold leases."""
        return {client for by_client in self._lookups.values() for client in by_client}

    def drop_clients(self, clients: set[bytes]) -> None:
        """These clients are gone for good: end their lookups."""
        self._end_where(lambda lookup: lookup.client in clients)

    def _end_oldest_unreported(self, client: bytes) -> bool:
        oldest = next((lookup for lookup in self._unreported if lookup.client == client), None)
        if oldest is not None:
            self.end(oldest)
        return oldest is not None

    def _holding(
        self, request_id: str, scope: Scope, hashes: Sequence[bytes], start: int, rank: int
    ) -> Lookup | None:
        """The request's lookup that still has a share of chunk `start` for this rank."""
        for lookup in self._lookups.get(request_id, {}).values():
            known = lookup.scope == scope and start < min(lookup.hits, len(hashes))
            if known and lookup.hashes[start] == hashes[start] and lookup.readers[rank][start]:
                return lookup
        return None

    def _end_where(self, condition: Callable[[Lookup], bool]) -> int:
        before = self.live
        for lookup in list(self.lookups()):
            if condition(lookup):
                self.end(lookup)
        return before - self.live

    def end(self, lookup: Lookup) -> None:
        """Give back all that a lookup holds. Once more is nothing."""
        if not lookup.ended.done:
            lookup.ended.set(None)
        for rank in range(len(lookup.objects)):
            self._release(lookup, rank, range(lookup.hits), readers=_ALL)
        self._mark_reported(lookup)
        self._forget_if_over(lookup)

    def _mark_reported(self, lookup: Lookup) -> None:
        lookup.reported = True
        self._unreported.pop(lookup, None)

    def _release(self, lookup: Lookup, rank: int, chunks: range, readers: int) -> None:
        left, objects = lookup.readers[rank], lookup.objects[rank]
        for chunk in range(chunks.start, min(chunks.stop, lookup.hits)):
            if not left[chunk]:
                continue
            left[chunk] = max(0, left[chunk] - readers)
            if not left[chunk]:
                lookup.live -= 1
                self.live -= 1
                for entry in objects[chunk]:
                    entry.space.holds.unlease(entry)

    def _forget_if_over(self, lookup: Lookup) -> None:
        if lookup.live or not lookup.reported:
            return
        if not lookup.ended.done:
            lookup.ended.set(None)
        by_client = self._lookups.get(lookup.request_id, {})
        if by_client.get(lookup.client) is lookup:
            del by_client[lookup.client]
            self.open -= 1
            self._weights[lookup.client] -= lookup.weight
            if not self._weights[lookup.client]:
                del self._weights[lookup.client]
            if not by_client:
                del self._lookups[lookup.request_id]


def _entries(lookup: Lookup) -> Iterator[Entry]:
    return (entry for chunks in lookup.objects for objects in chunks for entry in objects)
