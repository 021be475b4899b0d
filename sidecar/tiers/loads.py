"""From a backend into the L1: one object a load, verified before it is published."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, Heat, State, shared
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.flow import Cancelled, Flow, Flows, Gate, Outcome, ended
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import Bytes, TierError
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import HEADER_BYTES, verify

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Load:
    """An object of the sequence `hashes` on its way, from `backend` or one of those `behind` it.

    `deadline` is on time.monotonic: when nobody waits for it any more. `running`: a thread is
    at it. `store_waits`: a worker that has these bytes waits for it. `outdated`: what was read
    has been replaced meanwhile, and says nothing of what is there now. `parent` is the span of
    the lookup that began it.
    """

    entry: Entry
    name: ObjectName
    hashes: Sequence[bytes]
    deadline: float
    backend: Backend
    behind: list[Backend]
    parent: Span
    running: bool = False
    store_waits: bool = False
    outdated: bool = False
    flow: Flow[None] = field(init=False)


class Loads:
    """All loads under way. Loop thread only.

    `on_loaded(entry, backend)` is called after an object has become an ordinary one of the L1.
    """

    def __init__(
        self, l1: L1, arena: Bytes, backends: Sequence[Backend], telemetry: Telemetry, flows: Flows,
        cold: bool, on_loaded: Callable[[Entry, Backend], None],
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._arena = arena
        self._backends = backends
        self._telemetry = telemetry
        self._flows = flows
        self._heat = Heat.COLD if cold else Heat.WARM
        self._on_loaded = on_loaded
        self._loads: dict[Entry, Load] = {}  # those that may still be published
        self._gates = {backend: Gate(backend.read_slots) for backend in backends}
        self._running: dict[Backend, set[Load]] = {backend: set() for backend in backends}
        self._bytes = dict.fromkeys(backends, 0)  # being read

    def under_way(self, entry: Entry, deadline: float) -> bool:
        """Whether `entry` is being loaded, as far as one can tell; if so until `deadline`."""
        load = self._loads.get(entry)
        if load is None or not load.backend.reads.allows():
            return False  # of a backend that is cut off nobody knows when it answers
        load.deadline = max(load.deadline, deadline)
        return True

    def where(self, name: ObjectName, size: int) -> list[Backend]:
        """The backends that have the object of `size` bytes, in the order of the cascade."""
        wanted = HEADER_BYTES + aligned(size)
        found = [
            backend
            for backend in self._backends
            if name in backend.catalog and backend.reads.allows()
        ]
        for backend in list(found):
            if backend.catalog.size(name) not in (0, wanted):
                backend.condemn(name, "length")
                found.remove(backend)
        return found

    def begin(
        self, space: SpaceKey, name: ObjectName, size: int, hashes: Sequence[bytes],
        deadline: float, backends: list[Backend], span: Span,
    ) -> Entry | None:  # fmt: skip
        """Begin to load an object of the sequence `hashes`; None if the L1 has no room."""
        entry = self._l1.reserve(space, name.hash, size)
        if entry is None:
            self._count_failure("l1_oom", space.model_name)
            return None
        entry.settled = Outcome()
        load = self._loads[entry] = Load(
            entry, name, hashes, deadline, backends[0], backends[1:], span
        )
        load.flow = self._flows.start(self._load(load))
        return entry

    def drop_unwanted(self) -> None:
        """Give back the slots of what nobody waits for, but of what a thread is at.

        If a worker's store waits for such a one, it has the bytes: it need not wait.
        """
        for load in list(self._loads.values()):
            in_the_way = load.store_waits and not load.entry.leases
            if in_the_way if load.running else not self._is_wanted(load):
                load.flow.stop("nobody waits for it")

    def give_up(self, entry: Entry) -> bool:
        """A store has the bytes of `entry`. Get a load of it out of the way, if it is one.

        False if `entry` is no load, or one that a lookup waits for; the store has to wait
        too, for no longer than the lookup does.
        """
        load = self._loads.get(entry)
        if load is None:
            return False
        if entry.leases and load.backend.reads.allows():
            load.store_waits = True
            return False
        load.flow.stop("a store has the bytes")
        return True

    def forget_all(self) -> None:
        """What is on its way is not wanted: the cache has been cleared."""
        for load in list(self._loads.values()):
            load.flow.stop("the cache has been cleared")

    def in_flight(self, backend: Backend) -> tuple[int, int]:
        """Loads of a backend that a thread is at: objects, bytes."""
        return len(self._running[backend]), self._bytes[backend]

    def busy(self, backend: Backend) -> set[ObjectName]:
        """What is being read from a backend now, or will be: not to be deleted there."""
        waiting = (load for load in self._loads.values() if load.backend is backend)
        return {load.name for load in (*self._running[backend], *waiting)}

    def replaced(self, backend: Backend, name: ObjectName) -> None:
        """Something was stored under `name`."""
        for load in self._running[backend]:
            load.outdated = load.outdated or load.name == name

    async def _load(self, load: Load) -> None:
        """Read an object from the first backend that has it whole, and publish it."""
        entry = load.entry
        try:
            await self._flows.turn()  # the lookup that wants it has its lease then
            missing = await self._read(load)
            if missing is not None:
                self._publish(load, missing)
        except Cancelled:
            pass
        finally:
            self._loads.pop(entry, None)
            if entry.state is State.WITHDRAWN:
                self._l1.release_withdrawn(entry)
            elif entry.state is State.WRITING:
                self._l1.abort(entry)

    async def _read(self, load: Load) -> frozenset[int] | None:
        """Its missing groups; None if no backend has it, or nobody wants it any more."""
        while True:
            backend = load.backend
            self._telemetry.l2_prefetch_load_submitted_objects_chunks.add(1, backend.label)
            async with self._gates[backend]:
                if self._is_wanted(load) and backend.reads.allows():
                    try:
                        return await self._read_from(backend, load)
                    except TierError as error:
                        if not load.outdated:
                            backend.lost(load.name, error)
            load.behind = [backend for backend in load.behind if backend.reads.allows()]
            if not self._is_wanted(load):
                return None
            if not load.behind:
                self._count_failure("not_found", load.entry.space.key.model_name)
                return None
            load.backend = load.behind.pop(0)

    async def _read_from(self, backend: Backend, load: Load) -> frozenset[int]:
        """Raises TierError; Cancelled when it must not be published, and no thread is at it."""
        entry, began, epoch = load.entry, time.monotonic(), backend.epoch
        record = self._arena[entry.start : entry.end]
        span = load.parent.child("l2_load", l2_name=backend.label, bytes=len(record))

        def work() -> frozenset[int]:
            epoch.load(load.name, record)
            return verify(record, entry.space.key, entry.hash, entry.size)

        load.running = True
        self._running[backend].add(load)
        self._bytes[backend] += len(record)
        call = backend.reading(work, on_late=lambda: load.flow.cancel("timeout"))
        try:
            missing = await call
        except Cancelled as cancelled:
            span.end(cancelled.reason)
            self._loads.pop(entry, None)
            self._l1.withdraw(entry)
            await ended(call)  # the thread still has the slot
            raise
        except TierError as error:
            span.end(str(error))
            raise
        finally:
            load.running = False
            self._running[backend].discard(load)
            self._bytes[backend] -= len(record)
        span.end("")
        backend.catalog.touch(load.name)
        rate = len(record) / max(time.monotonic() - began, 1e-9) / 1e9
        self._telemetry.l2_load_throughput.record(rate, backend.label)
        self._telemetry.l2_transfer_bytes.add(len(record), "load", backend.label)
        return missing

    def _publish(self, load: Load, missing: frozenset[int]) -> None:
        entry, backend = load.entry, load.backend
        del self._loads[entry]
        entry.missing, entry.sealed, entry.heat = shared(missing), True, self._heat
        self._telemetry.l2_prefetch_load_completed_chunks.add(1, backend.label)
        self._l1.commit(entry)
        if not entry.leases:  # nobody waits any more who would see to it that heads outlive tails
            known = load.hashes.index(entry.hash) + 1
            self._l1.touch(entry.space.key, load.hashes[:known])
        self._on_loaded(entry, backend)

    def _is_wanted(self, load: Load) -> bool:
        return bool(load.entry.leases) and time.monotonic() < load.deadline

    def _count_failure(self, reason: str, model_name: str) -> None:
        self._telemetry.l2_prefetch_failure_chunks.add(1, reason, model_name)
