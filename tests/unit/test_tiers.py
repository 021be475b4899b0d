"""Write-behind, loads and prefetches over adapters that do as the test says."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sidecar.cache.check import problems
from sidecar.cache.entry import State
from sidecar.cache.keys import SpaceKey
from sidecar.tiers import leftovers
from sidecar.tiers.base import NoSpace, TierError
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.prefetch_plan import Prefetch
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, Memory, hash_of

RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES


def name(number: int, space: SpaceKey = SPACE) -> ObjectName:
    return ObjectName(space_name(space), hash_of(number))


def on(op: str, action: Callable[[], None]) -> Callable[[str, ObjectName | None], None]:
    """Do something before each call of one kind."""

    def before(called: str, _: ObjectName | None) -> None:
        if called == op:
            action()

    return before


def failing(op: str, error: Exception) -> Callable[[str, ObjectName | None], None]:
    def raise_it() -> None:
        raise error

    return on(op, raise_it)


def test_what_is_evicted_comes_back() -> None:
    bench = Bench(Memory(), slots=4).start()
    bench.store(1, 2)
    bench.settle()
    bench.store(3, 4, 5, 6)
    assert bench.lookup(1, 2) == 2
    bench.settle()
    assert bench.leases.live == bench.l1.held == 0


def test_a_new_server_finds_what_the_old_one_kept() -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2, 3)
    old.settle()
    new = Bench(memory).start()
    assert new.tiers.backends[0].catalog.used_bytes == 3 * RECORD_BYTES
    assert new.lookup(1, 2, 3, 4) == 3
    assert new.count("l2_prefetch_load_completed_chunks") == 3
    space = new.l1.space(SPACE)
    assert space is not None
    loaded = space.prefix([hash_of(1), hash_of(2)])
    assert loaded[0].missing is loaded[1].missing, "a set of its own would cost each 216 bytes"


def test_hits_while_the_scan_is_under_way() -> None:
    memory, scanning = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1, 2)
    old.settle()
    memory.before = on("scan", lambda: scanning.wait(20) or None)
    new = Bench(memory)
    new.tiers.start()
    assert new.lookup(1, 2) == 2
    assert not new.tiers.backends[0].scanned
    scanning.set()


def test_a_lookup_waits_and_then_gets_all() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1, 2)
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory).start()
    bench.begin("r", 1, 2)
    assert bench.leases.report("r", b"me") is None
    gate.set()
    bench.run_until(lambda: "r" in bench.results)
    assert bench.leases.report("r", b"me") == 2


def test_two_lookups_load_an_object_once() -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2)
    old.settle()
    bench = Bench(memory).start()
    bench.begin("a", 1, 2)
    bench.begin("b", 1, 2)
    bench.run_until(lambda: len(bench.results) == 2)
    assert bench.results == {"a": 2, "b": 2}
    assert memory.calls.count("load") == 2


def test_a_hole_in_the_l1_is_filled() -> None:
    bench = Bench(Memory()).start()
    entries = bench.store(1, 2, 3)
    bench.settle()
    bench.l1.discard(entries[1])
    assert bench.lookup(1, 2, 3) == 3
    assert bench.count("l2_prefetch_load_submitted_objects_chunks") == 1


def test_at_the_deadline_counts_what_has_arrived() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1, 2, 3)
    old.settle()

    def before(op: str, which: ObjectName | None) -> None:
        if op == "load" and which == name(2):
            gate.wait(20)

    memory.before = before
    bench = Bench(memory, policy=replace(DEFAULTS, timeout_seconds=0.3)).start()
    assert bench.lookup(1, 2, 3) == 1
    assert bench.count("l2_prefetch_deadline_requests") == 1
    gate.set()
    # The late one is not lost: it is an object of the L1 like any other.
    bench.run_until(lambda: bench.l1.objects == 3)
    assert bench.l1.writing == bench.l1.held == 0


def test_a_lookup_that_is_given_up_loads_nothing_more() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory, slots=32).start()
    numbers = range(1, 25)
    old.store(*numbers)
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory, slots=32, settings={"num_workers": 1}).start()
    lookup = bench.begin("r", *numbers)
    bench.leases.end(lookup)
    gate.set()
    bench.run_until(lambda: not bench.l1.writing)
    assert memory.calls.count("load") == bench.l1.objects <= 2


@pytest.mark.parametrize("place", [0, 8, 20, 60, HEADER_BYTES, RECORD_BYTES - 1])
def test_a_flipped_byte_is_a_miss(place: int) -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2, 3)
    old.settle()
    data = bytearray(memory.records[name(2)])
    data[place] ^= 0x10
    memory.records[name(2)] = bytes(data)
    bench = Bench(memory).start()
    assert bench.lookup(1, 2, 3) == 1
    assert bench.count("l2_corrupt_objects") == 1
    bench.run_until(lambda: bench.count("l2_quarantined_objects") == 1)
    assert [aside for aside, _ in memory.aside] == [name(2)]
    bench.run_until(lambda: not bench.l1.writing)


def test_swapped_and_renamed_objects_are_misses() -> None:
    memory, other = Memory(), SPACE._replace(model_name="other")
    old = Bench(memory).start()
    old.store(1, 2)
    old.settle()
    records = memory.records
    records[name(1)], records[name(2)] = records[name(2)], records[name(1)]
    records[name(3, other)] = records[name(1)]
    bench = Bench(memory).start()
    assert bench.lookup(1, 2) == 0
    assert bench.lookup(3, space=other) == 0
    bench.run_until(lambda: bench.count("l2_corrupt_objects", "key") == 3)


def test_an_object_of_another_length_is_a_miss() -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1)
    old.settle()
    memory.records[name(1)] += bytes(4096)
    assert Bench(memory).start().lookup(1) == 0


def test_the_next_backend_helps_out() -> None:
    near, far = Memory(), Memory()
    old = Bench(near, far).start()
    old.store(1, 2)
    old.settle()
    near.records[name(1)] = bytes(RECORD_BYTES)
    del near.records[name(2)]
    bench = Bench(near, far).start()
    assert bench.lookup(1, 2) == 2
    bench.settle()
    assert set(near.records) == {name(1), name(2)}  # what came from far is near again
    assert near.records == far.records


def test_a_failing_backend_is_cut_off_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.2)
    memory = Memory()
    old = Bench(memory).start()
    old.store(*range(1, 10))
    old.settle()
    bench = Bench(memory).start()
    memory.before = failing("load", TierError("EIO"))
    while bench.tiers.backends[0].reads.state == "closed":
        assert bench.lookup(*range(1, 10)) == 0
    calls = len(memory.calls)
    assert bench.lookup(*range(1, 10)) == 0
    assert len(memory.calls) == calls
    assert bench.count("l2_errors", "load", "EIO") >= 3
    assert bench.count("l2_breaker_opened", "load") == 1
    memory.before = lambda op, _: None
    bench.run_until(lambda: bench.lookup(1) == 1)
    assert bench.tiers.backends[0].reads.state == "closed"


def test_a_call_that_hangs_is_not_waited_for_again() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(*range(1, 9))
    old.settle()
    memory.before = on("load", lambda: gate.wait(60) or None)
    settings = {"num_workers": 4, "timeout_seconds": 0.1}
    policy = replace(DEFAULTS, timeout_seconds=0.5)
    bench = Bench(memory, settings=settings, policy=policy).start()
    backend = bench.tiers.backends[0]
    assert bench.lookup(*range(1, 9)) == 0
    bench.tick()
    assert backend.reads.state == "open"
    assert bench.count("l2_timeouts") >= 3
    deadlines = bench.count("l2_prefetch_deadline_requests")
    assert bench.lookup(*range(1, 9)) == 0
    assert bench.count("l2_prefetch_deadline_requests") == deadlines
    # Their slots are not reused while a thread may still write to them.
    assert bench.l1.objects == 0
    assert bench.l1.used_bytes >= 4 * RECORD_BYTES
    gate.set()
    bench.run_until(lambda: bench.l1.used_bytes == bench.l1.objects * RECORD_BYTES)


def test_stores_are_dropped_when_the_queue_is_full() -> None:
    memory, gate = Memory(), threading.Event()
    memory.before = on("store", lambda: gate.wait(20) or None)
    bench = Bench(memory, slots=16, policy=replace(DEFAULTS, queue_objects=6)).start()
    bench.store(*range(1, 11))
    assert bench.count("l2_dropped_objects", "queue_full") == 4
    gate.set()
    bench.settle()
    assert set(memory.records) == {name(n) for n in range(1, 7)}
    assert bench.l1.held == 0


def test_the_queue_is_bounded_in_bytes() -> None:
    memory = Memory()
    bench = Bench(memory, slots=16, policy=replace(DEFAULTS, queue_ratio=0.25)).start()
    bench.busy = True
    bench.store(*range(1, 11))
    assert bench.tiers.writes.bytes <= 4 * RECORD_BYTES
    assert bench.count("l2_dropped_objects", "queue_full") == 6


def test_what_waits_to_be_written_is_not_evicted() -> None:
    memory = Memory()
    bench = Bench(memory, slots=4, policy=replace(DEFAULTS, queue_ratio=1.0)).start()
    bench.busy = True
    bench.store(1, 2, 3, 4)
    assert bench.l1.reserve(SPACE, hash_of(5), OBJECT_BYTES) is None
    bench.busy = False
    bench.settle()
    assert len(memory.records) == 4
    assert bench.l1.reserve(SPACE, hash_of(5), OBJECT_BYTES) is not None


def test_writing_gives_way_to_transfers() -> None:
    memory = Memory()
    bench = Bench(memory).start()
    bench.busy = True
    bench.store(1)
    for _ in range(5):
        bench._turn()
    assert not memory.records
    bench.busy = False
    bench.settle()
    assert set(memory.records) == {name(1)}


def test_a_failed_store_is_not_found() -> None:
    memory = Memory()
    memory.before = failing("store", TierError("EIO"))
    bench = Bench(memory).start()
    (entry,) = bench.store(1)
    bench.settle()
    bench.l1.discard(entry)
    assert bench.lookup(1) == 0
    assert bench.count("l2_dropped_objects", "error") == 1
    assert bench.tiers.backends[0].catalog.used_bytes == 0


def test_capacity_is_kept_by_giving_up_the_oldest() -> None:
    memory = Memory()
    settings = {"max_capacity_gb": 4 * RECORD_BYTES / 2**30, "num_workers": 2}  # one writes
    bench = Bench(memory, settings=settings).start()
    bench.store(1, 2, 3, 4)
    bench.settle()
    bench.store(5, 6)
    bench.settle()
    # Of one prompt the tail goes first: without its head nothing of it is a hit.
    bench.run_until(lambda: set(memory.records) == {name(n) for n in (1, 2, 5, 6)})
    assert bench.count("l2_evicted_objects_chunks") == 2
    assert bench.tiers.backends[0].catalog.used_bytes == 4 * RECORD_BYTES


def test_the_oldest_is_what_was_loaded_longest_ago() -> None:
    memory = Memory()
    settings = {"max_capacity_gb": 3 * RECORD_BYTES / 2**30, "num_workers": 2}  # one writes
    policy = replace(DEFAULTS, queue_ratio=1.0)
    bench = Bench(memory, settings=settings, slots=3, policy=policy).start()
    entries = bench.store(1, 2, 3)
    bench.settle()
    bench.l1.discard(entries[2])
    assert bench.lookup(3) == 1
    bench.store(4)
    bench.settle()
    bench.run_until(lambda: set(memory.records) == {name(n) for n in (1, 3, 4)})


def test_the_head_of_what_was_stored_or_loaded_together_outlives_its_tail() -> None:
    bench = Bench(Memory()).start()
    catalog = bench.tiers.backends[0].catalog
    entries = bench.store(1, 2, 3)
    bench.settle()
    assert catalog.names() == [name(n) for n in (3, 2, 1)]
    bench.tiers.stored(entries[1:])  # they are there
    assert catalog.names() == [name(n) for n in (1, 3, 2)]
    for entry in entries:
        bench.l1.discard(entry)
    assert bench.lookup(1, 2, 3) == 3
    assert catalog.names() == [name(n) for n in (3, 2, 1)]


def test_after_a_restart_the_order_of_use_is_kept() -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2, 3, 4)
    old.settle()
    memory.used_at = {name(1): 40.0, name(2): 10.0, name(3): 30.0, name(4): 20.0}
    settings = {"max_capacity_gb": 4 * RECORD_BYTES / 2**30}
    bench = Bench(memory, settings=settings).start()
    assert bench.tiers.backends[0].catalog.names() == [name(n) for n in (2, 4, 3, 1)]
    bench.store(5, 6)
    bench.settle()
    bench.run_until(lambda: set(memory.records) == {name(n) for n in (1, 3, 5, 6)})


def test_nothing_is_written_before_it_is_known_how_full_it_is() -> None:
    memory, gate = Memory(), threading.Event()
    memory.before = on("scan", lambda: gate.wait(20) or None)
    bench = Bench(memory, settings={"max_capacity_gb": 1.0})
    bench.tiers.start()
    bench.store(1)
    for _ in range(5):
        bench._turn()
    assert not memory.records
    gate.set()
    bench.run_until(lambda: bench.tiers.backends[0].scanned)
    bench.tick()
    bench.settle()
    assert memory.records


def test_a_full_backend_drops_the_store_and_gives_way() -> None:
    memory = Memory()
    policy = replace(DEFAULTS, queue_ratio=1.0)
    bench = Bench(memory, settings={"num_workers": 2}, policy=policy).start()  # one writes
    bench.store(*range(10, 20))
    bench.settle()
    memory.before = failing("store", NoSpace("ENOSPC"))
    bench.store(3)
    bench.settle()
    # So far that the next stores fit, the oldest first.
    bench.run_until(lambda: set(memory.records) == {name(10), name(11)})
    assert bench.count("l2_dropped_objects", "no_space") == 1
    assert bench.tiers.backends[0].writes.state == "closed"
    memory.before = lambda op, _: None
    bench.store(4)
    bench.settle()
    assert name(4) in memory.records


def test_below_the_floor_nothing_is_written() -> None:
    memory = Memory()
    memory.free = RECORD_BYTES - 1
    bench = Bench(memory).start()
    bench.store(1)
    bench.settle()
    assert "store" not in memory.calls
    assert bench.count("l2_dropped_objects", "no_space") == 1


def test_skip_l1_leaves_nothing_behind() -> None:
    memory = Memory()
    bench = Bench(memory, policy=replace(DEFAULTS, skip_l1=True)).start()
    bench.store(1, 2)
    bench.settle()
    assert bench.l1.objects == 0
    assert bench.lookup(1, 2) == 2


@pytest.mark.parametrize(("retain", "survives"), [(False, False), (True, True)])
def test_the_policy_decides_what_is_evicted_first(retain: bool, survives: bool) -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1)
    old.settle()
    bench = Bench(memory, slots=3, policy=replace(DEFAULTS, retain=retain)).start()
    bench.store(10, 11)
    bench.settle()
    assert bench.lookup(1) == 1
    bench.store(12)
    space = bench.l1.space(SPACE)
    assert space is not None
    assert (hash_of(1) in space.ready) is survives


def test_a_shared_backend_is_asked() -> None:
    memory = Memory(shared=True)
    one, other = Bench(memory).start(), Bench(memory).start()
    one.store(1, 2)
    one.settle()
    assert other.lookup(1, 2, 3) == 2
    # What somebody else has stored already is not sent again.
    stores = memory.calls.count("store")
    third = Bench(memory).start()
    third.store(1, 2)
    third.settle()
    assert memory.calls.count("store") == stores


def test_a_long_prefix_of_a_shared_backend() -> None:
    memory = Memory(shared=True)
    numbers = range(1, 101)
    one = Bench(memory, slots=128, policy=replace(DEFAULTS, queue_ratio=1.0)).start()
    one.store(*numbers)
    one.settle()
    assert Bench(memory, slots=128).start().lookup(*numbers, 500) == 100


def test_a_shared_backend_that_does_not_answer_is_a_miss() -> None:
    memory, gate = Memory(shared=True), threading.Event()
    memory.before = on("find", lambda: gate.wait(20) or None)
    bench = Bench(memory, policy=replace(DEFAULTS, timeout_seconds=0.2)).start()
    assert bench.lookup(1, 2) == 0
    gate.set()


def test_more_than_the_l1_holds() -> None:
    memory = Memory()
    old = Bench(memory, slots=16, policy=replace(DEFAULTS, queue_ratio=1.0)).start()
    old.store(*range(1, 13))
    old.settle()
    bench = Bench(memory, slots=4).start()
    assert bench.lookup(*range(1, 13)) == 4
    assert bench.count("l2_prefetch_failure_chunks", "l1_oom") == 1


def test_only_so_many_lookups_load_at_once() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1, 2, 3)
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory, policy=replace(DEFAULTS, max_in_flight=1)).start()
    for number in (1, 2, 3):
        bench.begin(f"r{number}", number)
    assert bench.l1.writing == 1
    assert bench.tiers.prefetches.active == 3
    gate.set()
    bench.run_until(lambda: len(bench.results) == 3)
    assert set(bench.results.values()) == {1}


def test_a_client_with_one_lookup_does_not_wait_for_one_with_many() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(*range(1, 9))
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory, policy=replace(DEFAULTS, max_in_flight=2)).start()
    for number in range(1, 7):
        bench.begin(f"many{number}", number, client=b"many")
    assert bench.l1.writing == 2
    bench.begin("one", 7, client=b"one")
    assert bench.l1.writing == 3
    bench.begin("two", 8, client=b"one")
    assert bench.l1.writing == 3, "who has one under way waits in turn"
    gate.set()
    bench.run_until(lambda: len(bench.results) == 8)
    assert set(bench.results.values()) == {1}


def test_lookups_that_are_given_up_leave_few_questions_behind() -> None:
    """A backend that answers slowly would have ever more to answer, and nobody waits for it."""
    memory, gate = Memory(shared=True), threading.Event()
    memory.before = on("find", lambda: gate.wait(20) or None)
    bench = Bench(memory, policy=replace(DEFAULTS, max_in_flight=3)).start()
    for number in range(100):
        lookup = bench.begin(f"r{number}", number)
        bench.tiers.prefetches.finish(lookup)
        bench.flows.run()
        bench.leases.end(lookup)
    assert len(bench.tiers.backends[0]._calls) == 3
    gate.set()
    bench.run_until(lambda: not len(bench.tiers.backends[0]._calls))
    assert bench.lookup(1) == 0


def test_of_a_lookup_that_is_over_nothing_waits_for_its_deadline() -> None:
    """What it looked for may be millions of hashes."""
    memory = Memory()
    bench = Bench(memory).start()
    lookup = bench.begin("r", 1, 2)
    bench.run_until(lambda: "r" in bench.results)
    bench.leases.end(lookup)
    ours = [p for p in gc.get_objects() if isinstance(p, Prefetch) and p.lookup is lookup]
    assert not ours


def test_a_thousand_writes_that_end_at_once_do_not_nest() -> None:
    """A clear while they wait for a pause: each is dropped when its turn comes."""
    memory, failures = Memory(), []
    bench = Bench(memory, slots=1000, policy=replace(DEFAULTS, queue_ratio=1.0)).start()
    bench.flows.on_failure = failures.append
    bench.busy = True
    bench.store(*range(1000))
    bench.l1.clear(force=True)
    bench.busy = False
    bench.tiers.tick()
    bench.settle()
    assert not failures and not bench.tiers.writes.objects
    assert bench.l1.used_bytes == 0


def test_clear_removes_what_is_kept_and_what_is_on_its_way() -> None:
    memory, gate = Memory(), threading.Event()
    bench = Bench(memory, slots=32).start()
    bench.store(1, 2)
    bench.settle()
    memory.before = on("store", lambda: gate.wait(20) or None)
    bench.store(3, 4, 5, 6, 7)
    bench.l1.clear(force=True)
    bench.tiers.clear()
    gate.set()
    bench.settle()
    bench.run_until(lambda: not memory.records)
    assert bench.lookup(1) == bench.lookup(3) == 0
    assert bench.l1.held == bench.l1.used_bytes == 0


def test_a_clear_is_at_once_and_spares_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are removed a few at a time, after a second clear, too."""
    monkeypatch.setattr(leftovers, "_DELETED_A_CALL", 2)
    memory, gate = Memory(), threading.Event()
    bench = Bench(memory, slots=32).start()
    bench.store(*range(1, 9))
    bench.settle()
    memory.before = on("delete", lambda: gate.wait(20) or None)
    catalog = bench.tiers.backends[0].catalog
    for stored in ([1, 8, 9], [2, 7, 10]):
        bench.l1.clear(force=True)
        bench.tiers.clear()
        assert (len(catalog), catalog.used_bytes, catalog.spaces()) == (0, catalog.reserved, [])
        assert [bench.lookup(number) for number in range(1, 11)] == [0] * 10
        bench.store(*stored)
    gate.set()
    bench.settle()
    bench.run_until(lambda: not bench.tiers.backends[0].clearing)
    assert {name.hash for name in memory.records} == {hash_of(number) for number in stored}
    assert catalog.used_bytes == sum(map(len, memory.records.values()))
    bench.l1.clear(force=True)
    assert bench.lookup(*stored) == 3


def test_a_load_that_a_clear_overtakes_is_not_published() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1)
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory).start()
    bench.begin("r", 1)
    bench.run_until(lambda: "load" in memory.calls)
    bench.tiers.clear()
    gate.set()
    bench.run_until(lambda: "r" in bench.results)
    assert bench.results["r"] == 0
    assert bench.l1.objects == bench.l1.writing == 0


def test_a_clear_reaches_what_is_shared() -> None:
    """What others have stored there, too, and also for others: theirs is the same model."""
    memory = Memory(shared=True)
    other = Bench(memory).start()
    other.store(2)
    other.settle()
    bench = Bench(memory).start()
    bench.store(1)
    bench.settle()
    bench.l1.clear(force=True)
    bench.tiers.clear()
    assert [bench.lookup(1), bench.lookup(2)] == [0, 0]
    bench.run_until(lambda: not bench.tiers.backends[0].clearing)
    assert not memory.records


def test_closing_writes_what_is_queued() -> None:
    memory = Memory()
    bench = Bench(memory).start()
    bench.busy = True
    bench.store(1, 2)
    bench.tiers.begin_stop()
    bench.settle()
    bench.tiers.close()
    assert len(memory.records) == 2
    assert memory.calls[-1] == "close"


def test_the_padding_of_a_record_tells_nothing_of_others() -> None:
    memory = Memory()
    bench = Bench(memory).start()
    bench.arena[:] = 0xEE
    entry = bench.l1.reserve(SPACE, hash_of(1), 100)
    assert entry is not None
    bench.arena[entry.offset : entry.offset + 100] = 1
    bench.l1.commit(entry)
    bench.tiers.stored([entry])
    bench.settle()
    body = np.frombuffer(memory.records[name(1)], np.uint8)[HEADER_BYTES:]
    assert body.tolist() == [1] * 100 + [0] * (4096 - 100)
    assert entry.state is State.READY


def test_an_error_in_one_lookup_does_not_stop_those_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2)
    old.settle()
    bench, failures = Bench(memory).start(), list[str]()
    bench.flows.on_failure = failures.append
    with monkeypatch.context() as broken:
        broken.setattr(bench.tiers.loads, "where", lambda *_: 1 / 0)
        bench.begin("r", 1)
    assert bench.results == {"r": 0} and "ZeroDivisionError" in failures[0]
    assert bench.lookup(2) == 1


def test_who_waits_hears_of_a_lookup_that_had_to_give_way() -> None:
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(1)
    old.settle()
    memory.before = on("load", lambda: gate.wait(20) or None)
    bench = Bench(memory).start()
    lookup, heard = bench.begin("r", 1), []
    bench.tiers.prefetches.when_loaded(lookup, lambda: heard.append(lookup.ended.done))
    assert bench.leases.make_room(lookup.client, 1, 2)
    assert not heard, "not in the middle of it"
    bench.flows.run()
    assert heard == [True]
    gate.set()


def test_a_probe_that_cannot_begin_is_a_failure_and_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All threads are stuck for good: what waits for them is given up, and gives its slot back."""
    monkeypatch.setattr("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.05)
    memory, gate = Memory(), threading.Event()
    old = Bench(memory).start()
    old.store(*range(1, 9))
    old.settle()
    memory.before = on("load", lambda: gate.wait(60) or None)
    policy = replace(DEFAULTS, timeout_seconds=0.5)
    bench = Bench(memory, settings={"num_workers": 2, "timeout_seconds": 0.1}, policy=policy)
    backend = bench.start().tiers.backends[0]

    assert bench.lookup(*range(1, 9)) == 0
    stuck = 2
    bench.run_ticking(lambda: bench.l1.used_bytes == stuck * RECORD_BYTES)
    for _ in range(3):
        bench.run_ticking(backend.reads.allows)
        assert bench.lookup(8) == 0
        bench.run_ticking(lambda: backend.reads.state == "open")
    assert "stuck" in backend.reads.last_failure
    assert bench.l1.used_bytes == stuck * RECORD_BYTES
    gate.set()
    bench.run_ticking(lambda: backend.reads.allows() and bench.lookup(*range(1, 9)) == 8)


def test_a_load_that_lets_the_next_one_evict_it_is_no_slot_of_two() -> None:
    """The end of a load answers a lookup, whose end begins another load, which needs the slot."""
    near, far = Memory(), Memory()
    old = Bench(far).start()
    old.store(1, 2, 3)
    old.settle()
    policy = replace(DEFAULTS, max_in_flight=1, queue_ratio=4.0)
    bench = Bench(near, far, slots=1, policy=policy).start()
    first = bench.begin("first", 1)
    bench.tiers.prefetches.when_loaded(first, lambda: bench.leases.end(first))
    second = bench.begin("second", 2)
    bench.run_until(lambda: len(bench.results) == 2)
    bench.settle()
    # The first one is on its way to the near backend, and has the only slot.
    assert bench.results == {"first": 1, "second": 0} and not second.hits
    assert bench.lookup(2) == 1
    bench.settle()
    assert bench.l1.used_bytes == bench.l1.capacity
    assert not any(part.free_bytes for part in bench.l1._slots._parts)


def test_a_backend_that_refuses_to_delete_is_not_cut_off_for_stores() -> None:
    """At capacity every eviction fails. What is there stays, is counted, and is served."""
    memory = Memory()
    settings = {"max_capacity_gb": 4 * RECORD_BYTES / 2**30}
    bench = Bench(memory, settings=settings).start()
    bench.store(1, 2, 3)
    bench.settle()
    memory.before = failing("delete", TierError("http_403"))
    (backend,) = bench.tiers.backends
    for number in range(4, 12):
        bench.store(number)
        bench.settle()
        bench.run_until(lambda: not backend._calls)
    bench.run_ticking(lambda: backend.deletes.state == "open")
    assert backend.writes.state == "closed"
    assert bench.count("l2_breaker_opened", "store") == 0
    assert len(memory.records) <= 5  # one is written while the first eviction fails
    assert backend.catalog.used_bytes == len(memory.records) * RECORD_BYTES
    assert bench.count("l2_dropped_objects", "capacity") >= 6


def deleted(bench: Bench, *numbers: int) -> tuple[int, int]:
    """How many of these the first backend has removed, and how many it has not."""
    told: list[tuple[int, int]] = []
    bench.tiers.delete(bench.tiers.backends[0], [name(n) for n in numbers], told.append)
    bench.run_ticking(lambda: told)
    return told[0]


@pytest.mark.parametrize("shared", [False, True])
def test_a_deletion_is_told_when_it_is_done(shared: bool) -> None:
    """Of what others have stored, too."""
    memory = Memory(shared)
    other = Bench(memory).start()
    other.store(1, 2, 3)
    other.settle()
    bench = Bench(memory).start()
    assert deleted(bench, 1, 2, 7) == (2, 0)
    assert set(memory.records) == {name(3)}


def test_a_deletion_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.05)
    memory = Memory()
    bench = Bench(memory).start()
    bench.store(1, 2)
    bench.settle()
    memory.before = failing("delete", TierError("EIO"))
    assert deleted(bench, 1) == (0, 1)
    bench.l1.clear(force=True)
    assert bench.lookup(1) == 0
    memory.before = lambda op, _: None
    bench.run_ticking(lambda: set(memory.records) == {name(2)})


def test_what_is_being_written_is_deleted_after_that() -> None:
    memory, gate = Memory(), threading.Event()
    memory.before = on("store", lambda: gate.wait(20) or None)
    bench = Bench(memory).start()
    bench.store(1)
    bench.run_until(lambda: "store" in memory.calls)
    told: list[tuple[int, int]] = []
    bench.tiers.delete(bench.tiers.backends[0], [name(1)], told.append)
    gate.set()
    bench.run_until(lambda: told)
    assert told == [(1, 0)] and not memory.records


def test_that_the_mark_can_be_read_says_nothing_of_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("sidecar.tiers.marking.CHECKED_SECONDS", 0.0)
    memory = Memory()
    old = Bench(memory).start()
    old.store(1, 2, 3)
    old.settle()
    bench, reads = Bench(memory).start(), []
    backend = bench.tiers.backends[0]

    def before(op: str, _: ObjectName | None) -> None:
        reads.append(op)
        if op == "load":
            raise TierError("EIO")

    memory.before = before
    while backend.reads.state == "closed":
        assert bench.lookup(1, 2, 3) == 0
    reads.clear()
    bench.run_ticking(lambda: reads.count("read_mark") > 5)
    assert backend.reads.state != "closed"


def test_what_is_stored_outlives_a_moment_without_its_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is out of sight then, and removed by nobody until the next clear."""
    monkeypatch.setattr("sidecar.tiers.epochs.CHECKED_SECONDS", 0.0)
    memory = Memory(shared=True)
    memory.mark = None
    benches = [Bench(memory).start() for _ in range(2)]
    benches[0].store(1)
    benches[0].settle()
    mark, memory.mark = memory.mark, None
    for bench in benches:
        bench.l1.clear(force=True)
        bench.run_ticking(lambda bench=bench: bench.lookup(1) == 0)  # type: ignore[misc]
        bench.run_until(lambda bench=bench: not bench.tiers.backends[0].leftovers.waiting)  # type: ignore[misc]
    memory.mark = mark
    for bench in benches:
        bench.run_ticking(lambda bench=bench: bench.lookup(1) == 1)  # type: ignore[misc]
    memory.mark = None
    bench.l1.clear(force=True)
    bench.run_ticking(lambda: bench.lookup(1) == 0)
    bench.tiers.clear()
    bench.run_ticking(lambda: not bench.tiers.backends[0].clearing and not memory.records)


def test_another_clear_right_behind_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was last: both come to the same epoch, and nothing of before is in it."""
    monkeypatch.setattr("sidecar.tiers.epochs.CHECKED_SECONDS", 0.0)
    memory = Memory(shared=True)
    benches = [Bench(memory).start() for _ in range(2)]
    backends = [bench.tiers.backends[0] for bench in benches]
    for number, bench in enumerate(benches):
        bench.store(number)
        bench.settle()
    for bench in benches:
        bench.l1.clear(force=True)
        bench.tiers.clear()
    while {backend.epoch.tag for backend in backends} != {memory.mark}:
        for bench in benches:
            bench.tick()
            assert bench.lookup(0, 1) == 0
    assert [bench.lookup(0, 1) for bench in benches] == [0, 0]
    assert not any(backend.marking.unmarked for backend in backends)
    benches[0].store(5)
    benches[0].settle()
    assert benches[1].lookup(5) == 1


def test_what_others_have_cleared_is_kept_for_whom_it_was_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not found again: requests that overlap would hold it without end."""
    monkeypatch.setattr("sidecar.tiers.epochs.CHECKED_SECONDS", 0.0)
    monkeypatch.setattr("sidecar.tiers.marking.CHECKED_SECONDS", 0.0)
    memory = Memory(shared=True)
    first, second = (Bench(memory).start() for _ in range(2))
    second.store(1)
    second.settle()
    promised = second.begin("promised", 1)
    second.run_until(lambda: second.results.get("promised") == 1)
    first.tiers.clear()
    first.run_until(lambda: not first.tiers.backends[0].marking.unmarked)
    second.run_ticking(lambda: second.tiers.backends[0].epoch.tag == memory.mark)
    assert second.lookup(1) == 0 and second.l1.used_bytes
    (kept,) = second.leases.promised("promised", promised.scope, [hash_of(1)], range(1), SPACE)
    assert kept is promised.objects[0][0][0] and kept.state is State.PROMISED
    second.store(1)
    assert second.lookup(1) == 1, "stored anew, beside it"
    second.settle()
    second.leases.end(promised)
    second.l1.clear(force=False)
    assert not second.l1.used_bytes and not problems(second.l1, second.leases)


def test_a_load_that_was_given_up_and_is_overdue_then_keeps_its_slot() -> None:
    """Until the thread that writes to it has ended, however often it is told that it is late."""
    memory, gate, reached = Memory(), threading.Event(), threading.Event()
    old = Bench(memory).start()
    old.store(1)
    old.settle()

    def wait() -> None:
        reached.set()
        gate.wait(30)

    memory.before = on("load", wait)
    bench = Bench(memory, settings={"timeout_seconds": 0.01}).start()
    bench.begin("r", 1)
    bench.run_until(reached.is_set)
    bench.tiers.loads.forget_all()
    for _ in range(3):
        time.sleep(0.02)
        bench.tick()
    assert bench.count("l2_timeouts") and bench.l1.used_bytes == RECORD_BYTES
    gate.set()
    bench.run_until(lambda: not bench.l1.used_bytes)
