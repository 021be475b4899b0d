"""What a lookup finds in L2, brought into the L1 before the lookup is answered.

A prefix is loaded chunk by chunk of the sequence, as far as every rank and layout has it,
from the L1, from what others are loading, and from the backends in their order. The answer is
what has arrived: when all has, when something did not, or at the deadline.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Lookup
from sidecar.flow import Flows
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.bypass import Source
from sidecar.tiers.loads import Loads
from sidecar.tiers.names import ObjectName, object_name

# How many chunks, of how many objects, a backend is asked for ahead that has to be asked.
_CHUNKS_ASKED, _NAMES_ASKED = 32, 4096
# How many objects are planned in one go: about 20 ms.
_PLANNED_AT_ONCE = 1024
_COMPLETE = {State.READY, State.PROMISED}
_MAY_STILL_COME = {State.WRITING, *_COMPLETE}


@dataclass(frozen=True, slots=True)
class Want:
    """The objects of one rank in one layout: their space, and `size` bytes each.

    `past_l1`: where they are got that all workers who may ask for them can do without a slot.
    """

    space: SpaceKey
    size: int
    past_l1: Source | None = None


@dataclass(eq=False, slots=True)
class Prefetch:
    """One lookup that looks into L2. `wants[rank]` has one item a layout; `hashes` are all
    chunks of the sequence, of which the lookup already holds those that the L1 has.

    `arrived` chunks from the start are complete; `from_l2` tells for each chunk that the
    lookup holds whether something of it was loaded. `on_finished(hits)` may shorten the
    hit, and returns what it made of it. `span` is the lookup's and ends with it.
    """

    lookup: Lookup
    wants: list[list[Want]]
    hashes: Sequence[bytes]
    on_finished: Callable[["Prefetch", int], int]
    deadline: float
    span: Span
    arrived: int = 0
    from_l2: list[bool] = field(default_factory=list)
    absent: set[tuple[Backend, ObjectName]] = field(default_factory=set)
    asking: int = 0
    planned: bool = False
    finished: bool = False
    waiters: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether nothing may be added to the lookup any more."""
        return self.finished or self.lookup.ended.done


class Prefetches:
    """All lookups that wait for L2, `max_in_flight` of them at once, and one of each client.

    Loop thread only.
    """

    def __init__(
        self, l1: L1, leases: Leases, loads: Loads, backends: Sequence[Backend],
        telemetry: Telemetry, later: Callable[[float, Callable[[], None]], None], flows: Flows,
        timeout: float, max_in_flight: int,
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._leases = leases
        self._loads = loads
        self._backends = backends
        self._telemetry = telemetry
        self._later = later
        self._flows = flows
        self._timeout = timeout
        self._max_in_flight = max_in_flight
        self._waiting: deque[Prefetch] = deque()
        self._under_way: dict[Lookup, Prefetch] = {}
        self._running: Counter[bytes] = Counter()  # of each client
        self._starting = False

    @property
    def active(self) -> int:
        """Lookups that wait for L2 now."""
        return len(self._under_way)

    def begin(
        self, lookup: Lookup, wants: list[list[Want]], hashes: Sequence[bytes],
        on_finished: Callable[[Prefetch, int], int], span: Span = NO_SPAN,
    ) -> None:  # fmt: skip
        """Extend a lookup that is `loading` by what L2 has; it is settled when that ends.

        That may be at once. `on_finished(prefetch, hits)` returns how much of the prefix of
        `hits` chunks counts.
        """
        deadline = time.monotonic() + self._timeout
        prefetch = Prefetch(lookup, wants, hashes, on_finished, deadline, span)
        prefetch.arrived = lookup.hits
        prefetch.from_l2 = [False] * lookup.hits
        self._under_way[lookup] = prefetch
        self._flows.when(lookup.ended, partial(self._finish, prefetch))
        self._telemetry.l2_prefetch_lookup_requests.add(1)
        missing = (len(hashes) - lookup.hits) * sum(map(len, wants))
        self._telemetry.l2_prefetch_lookup_objects_chunks.add(missing)
        self._waiting.append(prefetch)
        self._start_waiting()
        if not prefetch.finished:
            self._later(self._timeout, partial(self._give_up, prefetch))

    def when_settled(self, lookup: Lookup, callback: Callable[[], None]) -> None:
        """Call back once, when `lookup` is not loading any more."""
        prefetch = self._under_way.get(lookup)
        if prefetch is None:
            callback()
        else:
            prefetch.waiters.append(callback)

    def forget_waiter(self, lookup: Lookup, callback: Callable[[], None]) -> None:
        """Do not call back any more, if that is still to come."""
        prefetch = self._under_way.get(lookup)
        if prefetch is not None and callback in prefetch.waiters:
            prefetch.waiters.remove(callback)

    def finish(self, lookup: Lookup) -> None:
        """Answer this one with what has arrived."""
        prefetch = self._under_way.get(lookup)
        if prefetch is not None:
            self._give_up(prefetch)

    def finish_all(self) -> None:
        """Answer with what has arrived."""
        for prefetch in list(self._under_way.values()):
            self._finish(prefetch)

    def _start_waiting(self) -> None:
        if self._starting:
            return  # one that ends at once starts the next: in turn, not inside each other
        self._starting = True
        try:
            while (prefetch := self._next()) is not None:
                self._waiting.remove(prefetch)
                self._running[prefetch.lookup.client] += 1
                self._advance(prefetch)
        finally:
            self._starting = False

    def _next(self) -> Prefetch | None:
        """Who is to begin: the oldest of the client that has fewest under way.

        A client that has none need not wait for others, however many they have.
        """
        first = min(self._waiting, key=lambda p: self._running[p.lookup.client], default=None)
        if first is None or (
            self._running[first.lookup.client] and self._running.total() >= self._max_in_flight
        ):
            return None
        return first

    def _advance(self, prefetch: Prefetch) -> None:
        """Plan chunk after chunk, until the prefix ends or a backend has to be asked."""
        lookup = prefetch.lookup
        pause_at = lookup.hits + max(1, _PLANNED_AT_ONCE // sum(map(len, prefetch.wants)))
        while not prefetch.is_over and lookup.hits < len(prefetch.hashes):
            chunk = lookup.hits
            if chunk == pause_at:
                prefetch.asking += 1
                self._later(0, partial(self._asked, prefetch))
                break
            objects = self._claim(prefetch, prefetch.hashes[chunk])
            if objects is None:
                break
            entries = [entry for of_rank in objects for entry in of_rank]
            prefetch.from_l2.append(
                any(e.settled or e.space.holds is not self._l1 for e in entries)
            )
            for entry in entries:
                if entry.settled is not None:
                    self._flows.when(entry.settled, partial(self._progress, prefetch))
        prefetch.planned = not prefetch.asking
        self._progress(prefetch)

    def _claim(self, prefetch: Prefetch, chunk_hash: bytes) -> list[tuple[Entry, ...]] | None:
        """Lease the objects of one chunk, there or on their way; None if something is missing.

        It may be that a backend is being asked for it; then this is tried again.
        """
        found = [
            [self._find(prefetch, want, chunk_hash) for want in of_rank]
            for of_rank in prefetch.wants
        ]
        flat = [item for of_rank in found for item in of_rank]
        if any(item is None for item in flat):
            self._ask(prefetch)
            return None
        # A load makes room: not by evicting what was just found.
        held = [item for item in flat if isinstance(item, Entry)]
        for entry in held:
            entry.space.holds.lease(entry)
        objects = self._load_rest(prefetch, chunk_hash, found)
        if objects is not None:
            self._leases.extend(prefetch.lookup, chunk_hash, objects)
        for entry in held:
            entry.space.holds.unlease(entry)
        return objects

    def _load_rest(
        self, prefetch: Prefetch, chunk_hash: bytes, found: list[list[Entry | list[Backend] | None]]
    ) -> list[tuple[Entry, ...]] | None:
        """Begin to load what was not found in the L1; None if there is no room."""
        objects = []
        for of_rank, wants in zip(found, prefetch.wants, strict=True):
            entries = [
                item if isinstance(item, Entry) else self._load(prefetch, want, chunk_hash, item)
                for item, want in zip(of_rank, wants, strict=True)
            ]
            complete = tuple(entry for entry in entries if entry is not None)
            if len(complete) < len(entries):
                return None
            objects.append(complete)
        return objects

    def _find(
        self, prefetch: Prefetch, want: Want, chunk_hash: bytes
    ) -> Entry | list[Backend] | None:
        """The object in the L1 or on its way there, or the backends that have it."""
        space = self._l1.space(want.space)
        if space is not None:
            ready = space.ready.get(chunk_hash)
            if ready is not None:
                return ready
            writing = space.writing.get(chunk_hash)
            if writing is not None:
                return writing if self._loads.under_way(writing, prefetch.deadline) else None
        past_l1 = want.past_l1.find(want.space, chunk_hash) if want.past_l1 is not None else None
        if past_l1 is not None:
            return past_l1
        return self._loads.where(object_name(want.space, chunk_hash), want.size) or None

    def _load(
        self,
        prefetch: Prefetch,
        want: Want,
        chunk_hash: bytes,
        backends: "Entry | list[Backend] | None",
    ) -> Entry | None:
        assert isinstance(backends, list)
        name = object_name(want.space, chunk_hash)
        if want.past_l1 is not None:
            entry = want.past_l1.begin(want.space, name, want.size, backends[0], prefetch.span)
            if entry is not None:
                return entry
        return self._loads.begin(
            want.space, name, want.size, prefetch.hashes, prefetch.deadline, backends, prefetch.span
        )

    def _ask(self, prefetch: Prefetch) -> None:
        """Ask the backends that have to be asked for the next chunks, unless they were."""
        start = prefetch.lookup.hits
        chunks = min(_CHUNKS_ASKED, max(1, _NAMES_ASKED // sum(map(len, prefetch.wants))))
        hashes = prefetch.hashes[start : start + chunks]
        names = [
            object_name(want.space, h)
            for h in hashes
            for of_rank in prefetch.wants
            for want in of_rank
        ]
        for backend in self._backends:
            if not (backend.must_ask and backend.reads.allows()):
                continue
            unasked = [
                n for n in names if n not in backend.catalog and (backend, n) not in prefetch.absent
            ]
            if unasked:
                prefetch.absent.update((backend, name) for name in unasked)
                prefetch.asking += 1
                backend.find(unasked, partial(self._asked, prefetch))

    def _asked(self, prefetch: Prefetch) -> None:
        prefetch.asking -= 1
        if not (prefetch.asking or prefetch.is_over):
            self._advance(prefetch)

    def _progress(self, prefetch: Prefetch) -> None:
        """See how much has arrived; finish if that is all that can."""
        if prefetch.finished:
            return
        lookup = prefetch.lookup
        states: set[State] = set()
        while prefetch.arrived < lookup.hits:
            chunk = prefetch.arrived
            states = {e.state for of_rank in lookup.objects for e in of_rank[chunk]}
            if not states <= _COMPLETE:
                break
            prefetch.arrived += 1
        everything = prefetch.planned and prefetch.arrived == lookup.hits
        if everything or not states <= _MAY_STILL_COME:
            self._finish(prefetch)

    def _give_up(self, prefetch: Prefetch) -> None:
        """The deadline: what has arrived has to do."""
        if not prefetch.finished:
            self._telemetry.l2_prefetch_deadline_requests.add(1)
            prefetch.span.set(deadline=True)
            self._finish(prefetch)

    def _finish(self, prefetch: Prefetch) -> None:
        if prefetch.finished:
            return
        prefetch.finished = True
        del self._under_way[prefetch.lookup]
        if prefetch in self._waiting:
            self._waiting.remove(prefetch)
        else:
            self._running[prefetch.lookup.client] -= 1
            if not self._running[prefetch.lookup.client]:
                del self._running[prefetch.lookup.client]
        if any(prefetch.from_l2):
            self._telemetry.l2_prefetch_load_submitted_requests.add(1)
            if prefetch.planned and prefetch.arrived == len(prefetch.from_l2):
                self._telemetry.l2_load_completed_requests.add(1)
        if any(prefetch.from_l2):
            self._order(prefetch)
        if not prefetch.lookup.ended.done:
            hits = prefetch.on_finished(prefetch, prefetch.arrived)
            self._leases.settle(prefetch.lookup, hits)
        prefetch.span.end()
        for callback in prefetch.waiters:
            callback()
        if prefetch.arrived < len(prefetch.from_l2):
            self._loads.drop_unwanted()
        self._start_waiting()

    def _order(self, prefetch: Prefetch) -> None:
        """What was loaded came in any order: its head is to outlive its tail all the same.

        Also what is behind a gap, and no hit: the next store may fill the gap.
        """
        planned = prefetch.hashes[: len(prefetch.from_l2)]
        spaces = [want.space for of_rank in prefetch.wants for want in of_rank]
        for space in spaces:
            self._l1.touch(space, planned)
        names = [object_name(space, each) for each in planned for space in spaces]
        for backend in self._backends:
            backend.catalog.touch_sequence(names)
