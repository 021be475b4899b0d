"""L2 without a server: tiers over an L1, on a loop that the test turns by hand."""

from __future__ import annotations

import heapq
import itertools
import mmap
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from sidecar.cache.check import problems
from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Lookup, Scope
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.flow import Flows
from sidecar.gds import Gds
from sidecar.telemetry import Telemetry
from sidecar.tiers.base import Adapter, Bytes, Corrupt, Found, Missing, TierError, batches
from sidecar.tiers.bypass import Source
from sidecar.tiers.names import ObjectName
from sidecar.tiers.prefetch_plan import Prefetch, Want
from sidecar.tiers.record import HEADER_BYTES
from sidecar.tiers.settings import AdapterSettings, GpuMover
from sidecar.tiers.tiers import ServerHooks, TierOptions, Tiers

PAGE = 4096
OBJECT_BYTES = 2 * PAGE
DEADLINE = 30.0
SPACE = SpaceKey("model", 1, 0, "", bytes(16))
DEFAULTS = TierOptions(
    skip_l1=False,
    reused=False,
    retain=False,
    max_in_flight=8,
    timeout_seconds=20.0,
    queue_ratio=0.5,
    queue_objects=1000,
)


def page_aligned(size: int) -> Bytes:
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Memory:
    """An adapter that keeps records in a dict; `before(op, name)` may wait or raise."""

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.records: dict[ObjectName, bytes] = {}
        self.used_at: dict[ObjectName, float] = {}
        self.aside: list[tuple[ObjectName, str]] = []
        self.calls: list[str] = []
        self.free: int | None = None
        self.mark: str | None = ""
        self.before: Callable[[str, ObjectName | None], None] = lambda op, name: None

    def _call(self, op: str, name: ObjectName | None = None) -> None:
        self.calls.append(op)
        self.before(op, name)

    def open(self, arena: Bytes) -> None:
        self.arena = arena

    def close(self) -> None:
        self.calls.append("close")

    def store(self, name: ObjectName, record: Bytes) -> None:
        self._call("store", name)
        self.records[name] = record.tobytes()

    def load(self, name: ObjectName, record: Bytes) -> None:
        self._call("load", name)
        data = self.records.get(name)
        if data is None:
            raise Missing
        if len(data) != len(record):
            raise Corrupt("length")
        record[:] = np.frombuffer(data, np.uint8)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        self._call("find")
        return [len(self.records[n]) if n in self.records else None for n in names]

    def delete(self, names: Sequence[ObjectName]) -> None:
        self._call("delete")
        for name in names:
            self.records.pop(name, None)

    def scan(self) -> Iterator[list[Found]]:
        self._call("scan")
        found = [Found(n, len(d), self.used_at.get(n, 0.0)) for n, d in self.records.items()]
        yield from batches(found, 2)

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        self._call("set_aside", name)
        self.aside.append((name, reason))
        return self.records.pop(name, None) is not None

    def read_mark(self) -> str | None:
        self.before("read_mark", None)
        return self.mark

    def write_mark(self, mark: str) -> None:
        self.before("write_mark", None)
        self.mark = mark

    def room(self) -> int | None:
        return self.free


class GivenSettings(AdapterSettings, frozen=True, kw_only=True):
    """Settings of an adapter that exists already."""

    adapter: object = None
    for_gpus: bool = False

    @property
    def gpu_mover(self) -> GpuMover | None:
        return GpuMover("GDS", {}) if self.for_gpus else None

    def build(self) -> Adapter:
        return self.adapter  # type: ignore[return-value]


class Bench:
    """An L1 of `slots` objects over `adapters`, and a loop to be turned by `run_until`."""

    def __init__(
        self,
        *adapters: Adapter,
        slots: int = 16,
        policy: TierOptions = DEFAULTS,
        settings: dict[str, object] | None = None,
        eviction: str = "LRU",
    ) -> None:
        slot = HEADER_BYTES + OBJECT_BYTES
        self.arena = page_aligned(slots * slot)
        quotas = Quotas(slots * slot)
        self.l1 = L1(
            slots * slot, POLICIES[eviction](quotas), headroom=HEADER_BYTES, protect_ratio=0.5
        )
        self.l1.grow(0, slots * slot)
        self.leases = Leases()
        self.telemetry = Telemetry(enabled=False)
        self.busy = False
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.flows = Flows(self.later)
        around = ServerHooks(
            self.post, self.later, self.flows, lambda: self.busy, lambda: float(self.busy)
        )
        given = [
            GivenSettings(type="memory", adapter=adapter, **(settings or {}))  # type: ignore[arg-type]
            for adapter in adapters
        ]
        self.tiers = Tiers(given, policy, self.l1, self.arena, self.leases, self.telemetry, around)
        self.gds = (
            Gds(self.tiers, self.telemetry, self.flows)
            if any(each.for_gpus for each in given)
            else None
        )
        self.results: dict[str, int] = {}

    def post(self, callback: Callable[[], None]) -> None:
        """Run it in a later turn. Any thread."""
        self._posted.put(callback)

    def start(self) -> Bench:
        """Scan, and wait until that is done."""
        self.tiers.start()
        self.run_until(
            lambda: all(backend.scanned or backend.must_ask for backend in self.tiers.backends)
        )
        self.run_until(lambda: all(x.scanned or x.adapter.shared for x in self.tiers.backends))
        return self

    def store(self, *numbers: int, space: SpaceKey = SPACE) -> list[Entry]:
        """Publish objects that hold their number, as a worker's store does."""
        entries = []
        for number in numbers:
            entry = self.l1.reserve(space, hash_of(number), OBJECT_BYTES)
            assert entry is not None
            self.arena[entry.offset : entry.offset + entry.size] = number % 251
            entries.append(entry)
        self.l1.publish(space, entries, [entry.hash for entry in entries])
        self.tiers.stored(entries)
        return entries

    def begin(
        self, request: str, *numbers: int, space: SpaceKey = SPACE, source: Source | None = None,
        client: bytes = b"me",
    ) -> Lookup:  # fmt: skip
        """A lookup of this sequence; its result will be in `results`.

        `source`: where it finds objects that need no slot of the L1.
        """
        hashes = [hash_of(n) for n in numbers]
        found = self.l1.space(space)
        ready = found.ready if found is not None else {}
        objects: list[tuple[Entry, ...]] = []
        for each in hashes:
            if each not in ready:
                break
            objects.append((ready[each],))
        scope, far = Scope(space.model_name, 1, ""), time.monotonic() + 1000
        lookup = Lookup(
            client, request, scope, hashes[: len(objects)], [objects], 1, far, loading=True
        )
        self.leases.add(lookup)

        def finished(prefetch: Prefetch, hits: int) -> int:
            self.results[request] = hits
            return hits

        wants = [[Want(space, OBJECT_BYTES, source)]]
        self.tiers.prefetches.begin(lookup, wants, hashes, finished)
        return lookup

    def lookup(self, *numbers: int, space: SpaceKey = SPACE) -> int:
        """Look a sequence up to the end, check the bytes of the hit, and let go of it."""
        request = f"r{next(self._order)}"
        lookup = self.begin(request, *numbers, space=space)
        self.run_until(lambda: request in self.results)
        for number, (entry,) in zip(numbers, lookup.objects[0], strict=False):
            assert (self.arena[entry.offset : entry.offset + entry.size] == number % 251).all()
        self.leases.end(lookup)
        return self.results[request]

    def settle(self) -> None:
        """Run until nothing is queued or written any more."""
        self.run_until(lambda: not self.tiers.writes.objects)

    def run_until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, "it never happened"
            self._turn()

    def run_ticking(self, condition: Callable[[], object]) -> None:
        """Run, and do all the while what is done once a second."""

        def ticked() -> object:
            self.tick()
            return condition()

        self.run_until(ticked)

    def count(self, counter: str, *labels: str) -> int:
        """The sum of a counter's series that have these label values, in any place."""
        instrument = getattr(self.telemetry, counter)
        return sum(
            cell.value
            for series, cell in instrument.series()
            if set(labels) <= set(series.values())
        )

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def _turn(self) -> None:
        self.flows.run()
        posted = None
        with suppress(queue.Empty):
            posted = self._posted.get(timeout=0.01)
        if posted is not None:
            posted()
            self.flows.run()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
            self.flows.run()
        self.check()

    def tick(self) -> None:
        """What is done once a second."""
        self.tiers.tick()
        self.flows.run()

    def run_posted(self) -> bool:
        """Run what was posted first, and the flows that go on then; whether there was something."""
        with suppress(queue.Empty):
            self._posted.get_nowait()()
            self.flows.run()
            return True
        return False

    def fire_timers(self) -> None:
        """Run all timers that have been set, as if their time had come."""
        timers, self._timers = sorted(self._timers, key=lambda timer: timer[:2]), []
        for _, _, callback in timers:
            callback()
            self.flows.run()

    def check(self) -> None:
        """The accounts of the L1 are true."""
        assert not problems(self.l1, self.leases)


__all__ = ["DEFAULTS", "OBJECT_BYTES", "SPACE", "Bench", "Memory", "TierError", "hash_of"]
