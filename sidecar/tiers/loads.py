"""From a backend into the L1: one object a load, verified before it is published."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.flow import Outcome
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.base import Bytes, TierError
from sidecar.tiers.direct import DirectReads
from sidecar.tiers.lane import Lane
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import HEADER_BYTES, verify

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Load:
    """An object on its way from `lane`; `others` have not been tried yet.

    It belongs to the sequence of the chunks `hashes`.
    `deadline` is on time.monotonic: when nobody waits for it any more. `running`: a thread is
    at it. `withdrawn`: it will not be published, but the thread still has its slot.
    `store_waits`: a worker that has these bytes waits for it. `outdated`: what was read has
    been replaced meanwhile, and says nothing of what is there now. `parent` is the span of the
    lookup that began it, `span` that of the call under way.
    """

    entry: Entry
    name: ObjectName
    hashes: Sequence[bytes]
    deadline: float
    lane: Lane
    others: list[Lane]
    parent: Span
    span: Span = NO_SPAN
    running: bool = False
    withdrawn: bool = False
    store_waits: bool = False
    outdated: bool = False


@dataclass(slots=True)
class _Queue:
    """The loads of one lane: those that wait, and those in flight, with their bytes."""

    waiting: deque[Load] = field(default_factory=deque)
    running: set[Load] = field(default_factory=set)
    bytes: int = 0


class Loads:
    """All loads under way. Loop thread only.

    `on_loaded(entry, lane)` is called after an object has become an ordinary one of the L1.
    `direct` are those that do not come into the L1.
    """

    def __init__(
        self, l1: L1, arena: Bytes, lanes: Sequence[Lane], telemetry: Telemetry, cold: bool,
        on_loaded: Callable[[Entry, Lane], None],
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._arena = arena
        self._lanes = lanes
        self._telemetry = telemetry
        self._cold = cold
        self._on_loaded = on_loaded
        self._queues = {lane: _Queue() for lane in lanes}
        self._loads: dict[Entry, Load] = {}
        self.direct = DirectReads(lanes, telemetry)

    def under_way(self, entry: Entry, deadline: float) -> bool:
        """Whether `entry` is being loaded, as far as one can tell; if so until `deadline`."""
        load = self._loads.get(entry)
        if load is None or not load.lane.reads.allows():
            return False  # of a backend that is cut off nobody knows when it answers
        load.deadline = max(load.deadline, deadline)
        return True

    def where(self, name: ObjectName, size: int) -> list[Lane]:
        """The lanes that have the object of `size` bytes, in the order of the cascade."""
        wanted = HEADER_BYTES + aligned(size)
        found = [lane for lane in self._lanes if name in lane.catalog and lane.reads.allows()]
        for lane in list(found):
            if lane.catalog.size(name) not in (0, wanted):
                lane.condemn(name, "length")
                found.remove(lane)
        return found

    def begin(
        self, space: SpaceKey, name: ObjectName, size: int, hashes: Sequence[bytes],
        deadline: float, lanes: list[Lane], span: Span,
    ) -> Entry | None:  # fmt: skip
        """Begin to load an object of the sequence `hashes`; None if the L1 has no room.

        `pump` starts it.
        """
        entry = self._l1.reserve(space, name.hash, size)
        if entry is None:
            self._count_failure("l1_oom", space.model_name)
            return None
        entry.settled = Outcome()
        load = Load(entry, name, hashes, deadline, lanes[0], lanes[1:], span)
        self._loads[entry] = load
        self._enqueue(load)
        return entry

    def pump(self) -> None:
        """Hand to the threads what they can take."""
        for lane, queue in self._queues.items():
            while queue.waiting and len(queue.running) < lane.read_slots:
                load = queue.waiting.popleft()
                if self._is_wanted(load) and lane.reads.allows():
                    self._start(lane, load)
                else:
                    self._next_lane(load)
        self.direct.pump()

    def drop_unwanted(self) -> None:
        """Give back the slots of what nobody waits for, but of what a thread is at.

        If a worker's store waits for such a one, it has the bytes: it need not wait.
        """
        for queue in self._queues.values():
            waiting = list(queue.waiting)
            queue.waiting.clear()
            for load in waiting:
                if self._is_wanted(load):
                    queue.waiting.append(load)
                else:
                    self._abort(load)
        for load in list(self._loads.values()):
            if load.running and load.store_waits and not load.entry.leases:
                self._withdraw(load)
        self.direct.forget_unused()

    def give_up(self, entry: Entry) -> bool:
        """A store has the bytes of `entry`. Get a load of it out of the way, if it is one.

        False if `entry` is no load, or one that a lookup waits for; the store has to wait
        too, for no longer than the lookup does.
        """
        load = self._loads.get(entry)
        if load is None:
            return False
        if entry.leases and load.lane.reads.allows():
            load.store_waits = True
            return False
        self._let_go(load)
        return True

    def forget_all(self) -> None:
        """What is on its way is not wanted: the cache has been cleared."""
        for load in list(self._loads.values()):
            if self._loads.get(load.entry) is load:  # else it went with one before it
                self._let_go(load)
        self.direct.forget_all()

    def in_flight(self, lane: Lane) -> tuple[int, int]:
        """Loads of a lane that have begun: objects, bytes."""
        queue = self._queues[lane]
        return len(queue.running), queue.bytes

    def busy(self, lane: Lane) -> set[ObjectName]:
        """What is being read from a lane now, or will be: not to be deleted there."""
        queue = self._queues[lane]
        return {load.name for load in (*queue.running, *queue.waiting)} | self.direct.busy(lane)

    def replaced(self, lane: Lane, name: ObjectName) -> None:
        """Something was stored under `name`."""
        for load in self._queues[lane].running:
            load.outdated = load.outdated or load.name == name
        self.direct.replaced(lane, name)

    def _is_wanted(self, load: Load) -> bool:
        return bool(load.entry.leases) and time.monotonic() < load.deadline

    def _enqueue(self, load: Load) -> None:
        self._telemetry.l2_prefetch_load_submitted_objects_chunks.add(1, load.lane.label)
        self._queues[load.lane].waiting.append(load)

    def _start(self, lane: Lane, load: Load) -> None:
        entry, queue, began = load.entry, self._queues[lane], time.monotonic()
        record, generation = self._arena[entry.start : entry.end], lane.generation
        load.running = True
        load.span = load.parent.child("l2_load", l2_name=lane.label, bytes=len(record))
        queue.running.add(load)
        queue.bytes += len(record)

        def work() -> frozenset[int]:
            generation.load(load.name, record)
            return verify(record, entry.space.key, entry.hash, entry.size)

        def done(missing: frozenset[int], error: TierError | None) -> None:
            load.running = False
            load.span.end(str(error) if error else "")
            queue.running.discard(load)
            queue.bytes -= len(record)
            if error is None:
                rate = len(record) / max(time.monotonic() - began, 1e-9) / 1e9
                self._telemetry.l2_load_throughput.record(rate, lane.label)
                self._telemetry.l2_transfer_bytes.add(len(record), "load", lane.label)
                self._arrived(lane, load, missing)
            else:
                self._lost(lane, load, error)
            self.pump()

        lane.read(work, done, on_late=partial(self._overdue, load))

    def _overdue(self, load: Load) -> None:
        load.span.end("timeout")
        self._withdraw(load)

    def _arrived(self, lane: Lane, load: Load, missing: frozenset[int]) -> None:
        entry = load.entry
        lane.catalog.touch(load.name)
        if load.withdrawn:
            self._abort(load)
            return
        del self._loads[entry]
        entry.missing, entry.sealed, entry.cold = missing, True, self._cold
        self._telemetry.l2_prefetch_load_completed_chunks.add(1, lane.label)
        self.direct.trust(load.name)
        self._l1.commit(entry)
        if not entry.leases:  # nobody waits any more who would see to it that heads outlive tails
            known = load.hashes.index(entry.hash) + 1
            self._l1.touch(entry.space.key, load.hashes[:known])
        self._on_loaded(entry, lane)

    def _lost(self, lane: Lane, load: Load, error: TierError) -> None:
        if not load.outdated:
            lane.lost(load.name, error)
        self._next_lane(load)

    def _next_lane(self, load: Load) -> None:
        """Try further down the cascade, or give up."""
        if self._is_wanted(load) and not load.withdrawn:
            others = [lane for lane in load.others if lane.reads.allows()]
            if others:
                load.lane, *load.others = others
                self._enqueue(load)
                return
            self._count_failure("not_found", load.entry.space.key.model_name)
        self._abort(load)

    def _let_go(self, load: Load) -> None:
        if load.running:
            self._withdraw(load)
        else:
            self._queues[load.lane].waiting.remove(load)
            self._abort(load)

    def _withdraw(self, load: Load) -> None:
        """It is not waited for any more; its slot is free when the thread has ended."""
        if not load.withdrawn:
            load.withdrawn = True
            del self._loads[load.entry]
            self._l1.withdraw(load.entry)

    def _abort(self, load: Load) -> None:
        """No thread is at it."""
        if load.withdrawn:
            self._l1.release_withdrawn(load.entry)
        else:
            del self._loads[load.entry]
            self._l1.abort(load.entry)

    def _count_failure(self, reason: str, model_name: str) -> None:
        self._telemetry.l2_prefetch_failure_chunks.add(1, reason, model_name)
