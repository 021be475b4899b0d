"""What happens between two steps of L2: a clear, a hang, an eviction at the wrong moment."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from sidecar.cache.entry import State
from sidecar.cache.leases import Lookup, Scope
from sidecar.tiers.base import TierError
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.prefetch_plan import Prefetch, Want
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, Memory, hash_of

RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES
WHOLE_QUEUE = replace(DEFAULTS, queue_ratio=1.0)


def name(number: int) -> ObjectName:
    return ObjectName(space_name(SPACE), hash_of(number))


class Gate:
    """Lets calls of one kind wait, or the first `count` of them; as a Memory's `before`."""

    def __init__(self, op: str, count: int = 1000) -> None:
        self.op, self.count = op, count
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, op: str, which: ObjectName | None) -> None:
        if op == self.op and self.count:
            self.count -= 1
            self.reached.set()
            self.open.wait(30)


def filled(*numbers: int, shared: bool = False) -> Memory:
    """A backend that has these objects."""
    memory = Memory(shared)
    bench = Bench(memory, slots=max(16, len(numbers)), policy=WHOLE_QUEUE).start()
    bench.store(*numbers)
    bench.settle()
    return memory


def quiet(bench: Bench) -> None:
    """Until no call is under way any more."""
    bench.run_until(lambda: not (bench.tiers.writes.objects or bench.l1.writing))
    bench.run_until(lambda: not any(backend._calls for backend in bench.tiers.backends))


def turn_for(bench: Bench, seconds: float) -> None:
    """Time for what should not happen."""
    end = time.monotonic() + seconds
    bench.run_until(lambda: time.monotonic() > end)


def real_bytes(memory: Memory) -> int:
    return sum(map(len, memory.records.values()))


def test_what_is_stored_again_after_a_clear_is_written() -> None:
    """The write of the first one was queued, and goes with the clear."""
    memory = Memory()
    bench = Bench(memory).start()
    memory.before = gate = Gate("store")
    bench.store(*range(1, 7))
    bench.run_until(gate.reached.is_set)
    bench.l1.clear(force=True)
    bench.tiers.clear()
    bench.store(6)
    gate.open.set()
    quiet(bench)
    bench.l1.clear(force=True)
    assert bench.lookup(6) == len(memory.records) == 1


def test_a_clear_while_a_backend_is_asked_stays_a_clear() -> None:
    """What was found before the clear is not there after it."""
    memory = filled(1, 2)
    scan, find = Gate("scan"), Gate("find")

    def before(op: str, which: ObjectName | None) -> None:
        scan(op, which)
        find(op, which)

    memory.before = before
    bench = Bench(memory)
    bench.tiers.start()
    bench.run_until(scan.reached.is_set)
    bench.begin("r", 1, 2)
    bench.run_until(find.reached.is_set)
    bench.tiers.clear()
    find.open.set()
    bench.run_until(lambda: "r" in bench.results)
    scan.open.set()
    bench.run_until(lambda: bench.tiers.backends[0].scanned)
    quiet(bench)
    bench.l1.clear(force=True)
    assert bench.lookup(1, 2) == 0


def test_a_hung_backend_does_not_keep_the_l1() -> None:
    """Only what a stuck call may still write to stays taken."""
    memory = filled(*range(1, 25))
    memory.before = gate = Gate("load")
    policy = replace(DEFAULTS, timeout_seconds=0.3)
    bench = Bench(memory, slots=32, policy=policy, settings={"num_workers": 2}).start()
    assert bench.lookup(*range(1, 25)) == 0
    bench.tick()
    assert bench.l1.writing <= bench.tiers.backends[0].read_slots
    gate.open.set()
    quiet(bench)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_loads_are_cut_off_when_every_thread_hangs(threads: int) -> None:
    """Fewer threads than failures in a row would never be enough to say that it is down."""
    memory = filled(*range(1, 9))
    memory.before = gate = Gate("load")
    policy = replace(DEFAULTS, timeout_seconds=0.3)
    settings = {"num_workers": threads, "timeout_seconds": 0.1}
    bench = Bench(memory, policy=policy, settings=settings).start()
    assert bench.lookup(*range(1, 9)) == 0
    bench.tick()
    deadlines = bench.count("l2_prefetch_deadline_requests")
    assert bench.lookup(*range(1, 9)) == 0
    assert bench.count("l2_prefetch_deadline_requests") == deadlines
    gate.open.set()
    quiet(bench)


def test_stores_are_cut_off_when_every_thread_hangs() -> None:
    """What waits behind them would be pinned in the L1 for as long as that takes."""
    memory = Memory()
    bench = Bench(memory, policy=WHOLE_QUEUE, settings={"timeout_seconds": 0.1}).start()
    memory.before = gate = Gate("store")
    for number in range(1, 10):
        bench.store(number)
    turn_for(bench, 0.3)
    bench.tick()
    backend = bench.tiers.backends[0]
    pinned, state = bench.tiers.writes.objects, backend.writes.state
    gate.open.set()
    quiet(bench)
    assert state == "open"
    assert pinned <= backend.write_slots


def test_a_store_does_not_wait_for_a_hung_backend() -> None:
    """A worker offers what a stuck call was to load: it must get a slot, or an answer.

    A store waits for entries that others are writing (`Entry.on_settled`): what a lookup has
    given up on must not be one of them.
    """
    memory = filled(1, 2)
    memory.before = gate = Gate("load")
    policy = replace(DEFAULTS, timeout_seconds=0.3)
    bench = Bench(memory, policy=policy, settings={"timeout_seconds": 0.1}).start()
    assert bench.lookup(1, 2) == 0
    time.sleep(0.2)
    bench.tick()  # the calls are overdue now
    space = bench.l1.space(SPACE)
    waited_for = list(space.writing) if space is not None else []
    gate.open.set()
    quiet(bench)
    assert not waited_for


def test_hundreds_of_lookups_that_wait_their_turn() -> None:
    """All of them are misses in the end, one after the other and not one inside the other."""
    memory = filled(1)
    memory.before = gate = Gate("load")
    bench = Bench(memory, policy=replace(DEFAULTS, max_in_flight=1)).start()
    bench.begin("first", 1)
    count = 2000
    for number in range(count):
        bench.begin(f"r{number}", 1000 + number)
    gate.open.set()
    bench.run_until(lambda: len(bench.results) == count + 1)
    assert bench.tiers.prefetches.active == 0
    assert bench.leases.live == 1


def test_an_object_that_cannot_be_read_is_written_again() -> None:
    """A bad sector: what is stored under that name once more is kept, not taken for granted."""
    memory = filled(1, 2)

    def before(op: str, which: ObjectName | None) -> None:
        if op == "load" and which == name(1):
            raise TierError("EIO")

    memory.before = before
    bench = Bench(memory).start()
    assert bench.lookup(1) == 0
    quiet(bench)
    stores = memory.calls.count("store")
    bench.store(1)
    bench.settle()
    assert memory.calls.count("store") == stores + 1


def test_what_is_superseded_is_not_forgotten() -> None:
    """If the fuller object is not kept in the end, the old one is still on the disk, and counts."""
    memory = Memory()
    bench = Bench(memory).start()
    (poor,) = bench.store(1)
    bench.settle()
    bench.l1.discard(poor)
    bench.tiers.superseded(SPACE, hash_of(1))

    def before(op: str, _: ObjectName | None) -> None:
        if op == "store":
            raise TierError("EIO")

    memory.before = before
    bench.store(1)
    quiet(bench)
    assert bench.tiers.backends[0].catalog.used_bytes == real_bytes(memory)


def test_a_rank_does_not_evict_what_another_has_found() -> None:
    """The last room in the L1 goes to the older object, not to the chunk that is looked up."""
    other = SPACE._replace(rank=1)
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, space=other)
    old.settle()
    bench = Bench(memory, slots=2).start()
    bench.store(1)
    bench.settle()
    bench.store(50)
    bench.settle()
    lookup = Lookup(b"me", "r", Scope("model", 2, ""), [], [[], []], 1, 1e12, loading=True)
    bench.leases.add(lookup)
    results: list[int] = []

    def finished(prefetch: Prefetch, hits: int) -> int:
        results.append(hits)
        return hits

    wants = [[Want(SPACE, OBJECT_BYTES)], [Want(other, OBJECT_BYTES)]]
    bench.tiers.prefetches.begin(lookup, wants, [hash_of(1)], finished)
    bench.run_until(lambda: results)
    held = [entry for of_rank in lookup.objects for (entry,) in of_rank]
    assert all(entry.state is State.READY for entry in held)
    bench.leases.end(lookup)
    quiet(bench)
    assert results == [1]
    assert bench.l1.held == bench.leases.live == 0
