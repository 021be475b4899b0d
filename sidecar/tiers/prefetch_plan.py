"""What a lookup takes from L2: chunk after chunk, as far as every rank and layout has it.

Each object is in the L1, or being loaded by somebody, or in a backend that was scanned, or in one
that has to be asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Lookup
from sidecar.flow import Flow, Flows, Outcome, Reminder
from sidecar.telemetry.spans import Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.bypass import Source
from sidecar.tiers.loads import Loads
from sidecar.tiers.names import ObjectName, object_name

# How many chunks, of how many objects, a backend is asked for ahead that has to be asked.
_CHUNKS_ASKED, _NAMES_ASKED = 32, 4096
# How many objects are planned in one go: about 20 ms.
_PLANNED_AT_ONCE = 1024
# An entry of the L1, complete or on its way; or the backends that have the object; or nothing.
Located = Entry | list[Backend] | None


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
    hit, and returns what it made of it. `span` is the lookup's and ends with it. `grew` is set
    when there is more to wait for. `asked` are the answers of backends that came last, or come.
    """

    lookup: Lookup
    wants: list[list[Want]]
    hashes: Sequence[bytes]
    on_finished: Callable[["Prefetch", int], int]
    deadline: float
    span: Span
    arrived: int
    from_l2: list[bool]
    absent: set[tuple[Backend, ObjectName]] = field(default_factory=set)
    grew: Outcome[None] = field(default_factory=Outcome)
    waiters: list[Callable[[], None]] = field(default_factory=list)
    asked: list[Outcome[None]] = field(default_factory=list)
    flow: Flow[None] = field(init=False)
    at_deadline: Reminder = field(init=False)

    @property
    def width(self) -> int:
        """How many objects stand for one chunk."""
        return sum(map(len, self.wants))


class Planner:
    """Leases what a lookup finds, and begins what has to be loaded. Loop thread only."""

    def __init__(
        self, l1: L1, leases: Leases, loads: Loads, backends: Sequence[Backend], flows: Flows
    ) -> None:
        self._l1, self._leases, self._loads = l1, leases, loads
        self._backends, self._flows = backends, flows

    async def plan(self, prefetch: Prefetch) -> None:
        """Lease chunk after chunk, until something is nowhere or the L1 has no room for it."""
        lookup, at_once = prefetch.lookup, max(1, _PLANNED_AT_ONCE // prefetch.width)
        pause_at = lookup.hits + at_once
        while lookup.hits < len(prefetch.hashes) and not lookup.ended.done:
            chunk_hash = prefetch.hashes[lookup.hits]
            if lookup.hits == pause_at:
                pause_at += at_once
                self._grew(prefetch)
                await self._flows.sleep(0)
                continue
            places = [
                [self._find(prefetch, want, chunk_hash) for want in of_rank]
                for of_rank in prefetch.wants
            ]
            if any(place is None for of_rank in places for place in of_rank):
                answers = self._ask(prefetch)
                if not answers:
                    return
                self._grew(prefetch)
                for answer in answers:
                    await answer
            elif not self._take(prefetch, chunk_hash, places):
                return

    def _find(self, prefetch: Prefetch, want: Want, chunk_hash: bytes) -> Located:
        space = self._l1.space(want.space)
        if space is not None:
            ready = space.ready.get(chunk_hash)
            if ready is not None:
                return ready
            writing = space.writing.get(chunk_hash)
            if writing is not None:
                return writing if self._loads.under_way(writing, prefetch.deadline) else None
        if want.past_l1 is not None:
            past_l1 = want.past_l1.find(want.space, chunk_hash)
            if past_l1 is not None:
                return past_l1
        return self._loads.where(object_name(want.space, chunk_hash), want.size) or None

    def _ask(self, prefetch: Prefetch) -> list[Outcome[None]]:
        """Ask the backends that have to be asked for the next chunks, unless they were."""
        start, chunks = prefetch.lookup.hits, min(_CHUNKS_ASKED, _NAMES_ASKED // prefetch.width)
        names = [
            object_name(want.space, chunk_hash)
            for chunk_hash in prefetch.hashes[start : start + max(1, chunks)]
            for of_rank in prefetch.wants
            for want in of_rank
        ]
        answers = []
        for backend in self._backends:
            if not (backend.must_ask and backend.reads.allows()):
                continue
            known, absent = backend.catalog, prefetch.absent
            unasked = [n for n in names if n not in known and (backend, n) not in absent]
            if unasked:
                absent.update((backend, name) for name in unasked)
                answer: Outcome[None] = Outcome()
                backend.find(unasked, partial(answer.set, None))
                answers.append(answer)
        prefetch.asked = answers
        return answers

    def _take(self, prefetch: Prefetch, chunk_hash: bytes, places: list[list[Located]]) -> bool:
        """Lease the objects of one chunk; False if the L1 has no room for what is in L2."""
        # A load makes room: not by evicting what was just found.
        found = [place for of_rank in places for place in of_rank if isinstance(place, Entry)]
        for entry in found:
            entry.space.holds.lease(entry)
        objects = self._objects(prefetch, chunk_hash, places)
        if objects is not None:
            self._leases.extend(prefetch.lookup, chunk_hash, objects)
            entries = [entry for of_rank in objects for entry in of_rank]
            is_loaded = any(e.settled or e.space.holds is not self._l1 for e in entries)
            prefetch.from_l2.append(is_loaded)
        for entry in found:
            entry.space.holds.unlease(entry)
        return objects is not None

    def _objects(
        self, prefetch: Prefetch, chunk_hash: bytes, places: list[list[Located]]
    ) -> list[tuple[Entry, ...]] | None:
        """The objects of one chunk by rank; what is in L2 is on its way then."""
        objects = []
        for of_rank, wants in zip(places, prefetch.wants, strict=True):
            entries = []
            for place, want in zip(of_rank, wants, strict=True):
                if isinstance(place, list):
                    entry = self._load(prefetch, want, chunk_hash, place)
                else:
                    entry = place
                if entry is None:
                    return None
                entries.append(entry)
            objects.append(tuple(entries))
        return objects

    def _load(
        self, prefetch: Prefetch, want: Want, chunk_hash: bytes, backends: list[Backend]
    ) -> Entry | None:
        name, span = object_name(want.space, chunk_hash), prefetch.span
        if want.past_l1 is not None:
            entry = want.past_l1.begin(want.space, name, want.size, backends[0], span)
            if entry is not None:
                return entry
        return self._loads.begin(
            want.space, name, want.size, prefetch.hashes, prefetch.deadline, backends, span
        )

    def _grew(self, prefetch: Prefetch) -> None:
        grew, prefetch.grew = prefetch.grew, Outcome()
        grew.set(None)
