"""Whatever workers, L2 and eviction do, in any order: no byte belongs to two, and no hit lies.

Both transfer modes over one L1 with two backends that fail. Copies, calls of the backends and
their results happen one by one, as hypothesis says. An object holds its own hash, over and over, so
each byte in the L1 can be checked after each step. KV_SIDECAR_MACHINE_EXAMPLES raises the number
of runs.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.cache.changes import Medium
from sidecar.cache.entry import MAY_PIN, Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.policies import POLICIES
from sidecar.cache.policy import ABOVE_COLD
from sidecar.cache.protections import TooMuchToProtect
from sidecar.handlers.kv_events.history import History
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import NoSpace, TierError
from sidecar.tiers.names import ObjectName, object_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support import hashes
from tests.support.node import CHUNK, EngineDrivenWorker, HandleWorker, Node
from tests.support.raw import EVENT
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, Bench, Memory
from tests.support.told import Told, objects
from tests.support.turned_threads import TurnedThreads

EXAMPLES = int(os.environ.get("KV_SIDECAR_MACHINE_EXAMPLES", "200"))
SLOTS = 7  # fewer than there are objects
CHUNKS = 4
DISTURBANCES = [
    *("backends_fail", "disks_are_full", "workers_transfer", "calls_are_overdue", "time_passes"),
    *("lookups_are_overdue", "leases_expire", "reservations_expire", "tick"),
    *("the_engine_driven_worker_leaves", "the_handle_worker_is_forgotten"),
]
MAX_COPIES = 12  # the worker has blocks for so many
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Prompt(list[int]):
    """Tokens, the first `shared` chunks of which others have, too."""

    def __init__(self, shared: int) -> None:
        super().__init__([*range(shared * CHUNK), *[900 + shared] * (CHUNKS - shared) * CHUNK])
        self.shared = shared

    def __repr__(self) -> str:
        return f"Prompt({self.shared})"


PROMPTS = [Prompt(shared) for shared in (0, 1, 3, 4)]


hashes_of = partial(hashes.hashes_of, chunk_size=CHUNK)


def content(space: SpaceKey | str, chunk_hash: bytes) -> Bytes:
    """What an object is made of: its hash, and whose it is."""
    model = space if isinstance(space, str) else space.model_name
    whole = chunk_hash[:28] + model.encode()[:4]
    return np.frombuffer(whole * (OBJECT_BYTES // len(whole)), np.uint8)


class Slow(Memory):
    """Writes to the slot of a load until the call has returned.

    `spoiled` are the names whose record is not what was stored under them.
    """

    def __init__(self, threads: TurnedThreads, shared: bool = False) -> None:
        super().__init__(shared)
        self._threads = threads
        self.spoiled: set[ObjectName] = set()

    def store(self, name: ObjectName, record: Bytes) -> None:
        super().store(name, record)
        self.spoiled.discard(name)

    def delete(self, names: Sequence[ObjectName]) -> None:
        super().delete(names)
        self.spoiled.difference_update(names)

    @property
    def whole(self) -> set[ObjectName]:
        """The names under which there is what was stored."""
        return self.records.keys() - self.spoiled

    def load(self, name: ObjectName, record: Bytes) -> None:
        super().load(name, record)
        data = record.copy()
        self._threads.writes.append(lambda: np.copyto(record, data))


def _is_worth_less(head: Entry, tail: Entry) -> bool:
    """For reasons that their places tell: the one is cold, or only the other was found again."""
    return head.place < ABOVE_COLD <= tail.place or head.place & 1 < tail.place & 1


def _flipped(record: bytes, at: int) -> bytes:
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


@dataclass(eq=False)
class Request:
    """A lookup: the `hits` that were reported are promised until they are taken or given back."""

    name: str
    worker: HandleWorker | EngineDrivenWorker
    tokens: list[int]
    hits: int | None = None


@dataclass(eq=False)
class Copy:
    """A store or a retrieve of handle mode that has not been answered."""

    uid: bytes
    worker: HandleWorker
    tokens: list[int]
    chunks: range
    blocks: list[int]
    is_load: bool
    must_succeed: bool


@dataclass(eq=False)
class Slots:
    """What an engine-driven worker was given: chunk and bytes of each slot."""

    worker: EngineDrivenWorker
    key: dict[str, Any]
    slots: list[tuple[bytes, Bytes]]
    is_read: bool
    written: bool = False


class Machine(RuleBasedStateMachine):
    @initialize(
        retain=st.booleans(),
        store_policy=st.sampled_from(["default", "skip_l1", "reused"]),
        shared=st.booleans(),
        in_flight=st.sampled_from([1, 8]),
        filled=st.booleans(),
        damaged=st.booleans(),
        records=st.sampled_from([5, 40, 40]),
        eviction=st.sampled_from(sorted(set(POLICIES) - {"noop"})),
    )
    def begin(
        self, retain: bool, store_policy: str, shared: bool, in_flight: int, filled: bool,
        damaged: bool, records: int, eviction: str,
    ) -> None:  # fmt: skip
        self.cleanup, self.threads = ExitStack(), TurnedThreads()
        self.cleanup.enter_context(self.threads)
        self.cleanup.enter_context(patch("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.0))
        self.cleanup.enter_context(patch("sidecar.tiers.breaker._LONGEST_PAUSE_SECONDS", 0.0))
        self.seconds = 1000.0
        self.cleanup.enter_context(patch("time.monotonic", self._clock))
        tags = (f"{number:012x}" for number in itertools.count())
        made = patch("sidecar.tiers.epochs.secrets.token_hex", lambda size: next(tags))
        self.cleanup.enter_context(made)
        self.adapters = [Slow(self.threads), Slow(self.threads, shared)]
        self.failure: TierError | None = None
        for adapter in self.adapters:
            adapter.before = self._mood
        policy = replace(
            DEFAULTS, retain=retain, skip_l1=store_policy == "skip_l1",
            reused=store_policy == "reused", max_in_flight=in_flight,
            timeout_seconds=1000.0, queue_ratio=1.0,
        )  # fmt: skip
        capacity = 0.0 if shared else records * (HEADER_BYTES + OBJECT_BYTES) / 2**30
        limits = {"num_workers": 2, "timeout_seconds": 500.0, "max_capacity_gb": capacity}
        self.bench = Bench(
            *self.adapters, slots=SLOTS, policy=policy, settings=limits, eviction=eviction
        )
        self.told = Told(self.bench.l1)
        self.node = Node(self.bench)
        self.history = History(self.node.core, 1 << 20)
        self.history.begin()
        self.handle, self.driven = HandleWorker(self.node, 1), EngineDrivenWorker(self.node, 2)
        self.bench.tiers.start()
        self.requests: list[Request] = []
        self.copies: list[Copy] = []
        self.slots: list[Slots] = []
        self.stored = set[tuple[str, bytes]]()  # and not cleared since: model and hash
        self.number = 0
        self.was_cleared = False
        if filled:
            self._fill_l2()
        if damaged:
            for adapter in self.adapters:
                for name in sorted(adapter.records, key=lambda name: name.path)[::3]:
                    adapter.records[name] = _flipped(adapter.records[name], HEADER_BYTES + 5)
                    adapter.spoiled.add(name)

    def _clock(self) -> float:
        self.seconds += 1e-6
        return self.seconds

    def _fill_l2(self) -> None:
        """The run begins with objects in L2 and none in the L1."""
        self.all_calls_end()
        for tokens in PROMPTS[:2]:
            self.store(tokens, 0, CHUNKS)
            self.node.copies.run()
            self.turn()
            self.all_calls_end()
            self.evict(SLOTS)

    def _mood(self, op: str, name: ObjectName | None) -> None:
        if self.failure is not None and op not in ("scan", "read_mark", "write_mark"):
            raise self.failure

    def _next(self) -> str:
        self.number += 1
        return f"r{self.number}"

    def _pick(self, items: list[Any], data: st.DataObject) -> Any:
        return items.pop(data.draw(st.integers(0, len(items) - 1)))

    # --- Stores ---

    @precondition(lambda self: len(self.copies) < MAX_COPIES)
    @rule(tokens=st.sampled_from(PROMPTS), start=st.integers(0, 3), count=st.integers(1, 4))
    def store(self, tokens: list[int], start: int, count: int) -> None:
        self._begin_copy("store", self._next(), tokens, range(start, min(start + count, CHUNKS)))

    @precondition(lambda self: not self.copies)
    @rule(tokens=st.sampled_from(PROMPTS), count=st.integers(1, 4))
    def store_and_find(self, tokens: list[int], count: int) -> None:
        """As most requests do: so that there are promises to be kept in what comes next."""
        self.store(tokens, 0, count)
        while self.node.copies.waiting:
            self.node.copies.run()
        self.turn()
        self.lookup(tokens, count, of_handle=True, asks_at_once=True)

    def _begin_copy(
        self, operation: str, request: str, tokens: list[int], chunks: range, promised: bool = False
    ) -> None:
        worker, is_load = self.handle, operation == "retrieve"
        used = {block for copy in self.copies for block in copy.blocks}
        blocks = [block for block in range(1, 64) if block not in used][: len(chunks)]
        for block, chunk in zip(blocks, chunks, strict=True):
            full = content(worker.model, hashes_of(tokens)[chunk])
            worker.memory.blocks[block] = 0 if is_load else full
            if not is_load:
                self.stored.add((worker.model, hashes_of(tokens)[chunk]))
        key = worker.key(tokens, chunks.start, chunks.stop, request)
        more = [0] if is_load else []
        uid = self.node.call(operation, key, worker.number, [blocks], EVENT, *more)
        self.copies.append(Copy(uid, worker, tokens, chunks, blocks, is_load, promised))

    @precondition(lambda self: self.node.copies.waiting)
    @rule(data=st.data(), fails=st.integers(0, 9))
    def a_copy_ends(self, data: st.DataObject, fails: int) -> None:
        self.handle.memory.fails = not fails
        self.node.copies.run(data.draw(st.integers(0, len(self.node.copies.waiting) - 1)))
        self.handle.memory.fails = False
        if not fails:
            for copy in self.copies:
                copy.must_succeed = False

    @rule(tokens=st.sampled_from(PROMPTS), start=st.integers(0, 3), count=st.integers(1, 4))
    def prepare_store(self, tokens: list[int], start: int, count: int) -> None:
        end, request = min(start + count, CHUNKS), self._next()
        found = self.driven.prepare("prepare_store", tokens, start, end, request)
        slots = [(hashes_of(tokens)[chunk], slot) for chunk, slot in found]
        if slots:
            key = self.driven.key(tokens, start, end, request)
            self.slots.append(Slots(self.driven, key, slots, is_read=False))
            self.stored.update((self.driven.model, chunk_hash) for chunk_hash, _ in slots)

    @precondition(lambda self: any(not s.is_read for s in self.slots))
    @rule(data=st.data())
    def a_worker_writes(self, data: st.DataObject) -> None:
        """Also after its reservation has expired."""
        slots = data.draw(st.sampled_from([s for s in self.slots if not s.is_read]))
        for chunk_hash, slot in slots.slots:
            slot[:] = content(self.driven.model, chunk_hash)
        slots.written = True

    @precondition(lambda self: any(s.written or s.is_read for s in self.slots))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        slots = data.draw(st.sampled_from([s for s in self.slots if s.written or s.is_read]))
        self.slots.remove(slots)
        number = slots.worker.number
        if slots.is_read:
            assert self.node.ask("commit_retrieve", slots.key, number) is True
        else:
            assert self.node.ask("commit_store", slots.key, number, b"") in (True, False)

    def reservations_expire(self) -> None:
        self.node.service._engine_driven.expire(float("inf"))

    # --- Lookups and loads ---

    @rule(
        tokens=st.sampled_from(PROMPTS),
        chunks=st.integers(1, 4),
        of_handle=st.booleans(),
        asks_at_once=st.booleans(),
    )
    def lookup(self, tokens: list[int], chunks: int, of_handle: bool, asks_at_once: bool) -> None:
        worker = self.handle if of_handle else self.driven
        request = Request(self._next(), worker, tokens[: chunks * CHUNK])
        key = worker.key(request.tokens, 0, chunks, request.name)
        self.node.ask("lookup", {**key, "worker_id": None}, 1)
        self.requests.append(request)
        if asks_at_once:
            request.hits = self.node.ask("query_prefetch_status", request.name)

    @rule(tokens=st.sampled_from(PROMPTS), calls=st.integers(0, 2))
    def lookup_of_what_only_l2_has(self, tokens: list[int], calls: int) -> None:
        """Some of the backends' calls have run then, or all have ended."""
        self.all_calls_end()
        self.evict(SLOTS)
        self.lookup(tokens, CHUNKS, of_handle=True, asks_at_once=False)
        for _ in range(min(calls, len(self.threads.waiting))):
            self.threads.run(0)
        if calls == 2:
            self.all_calls_end()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def query(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if request.hits is None:
            request.hits = self.node.ask("query_prefetch_status", request.name)

    @precondition(lambda self: len(self.copies) < MAX_COPIES and any(r.hits for r in self.requests))
    @rule(data=st.data())
    def retrieve(self, data: st.DataObject) -> None:
        """What was promised is there."""
        request = data.draw(st.sampled_from([r for r in self.requests if r.hits]))
        self.requests.remove(request)
        start = data.draw(st.integers(0, request.hits - 1))
        worker, tokens, chunks = request.worker, request.tokens, range(start, request.hits)
        if isinstance(worker, HandleWorker):
            self._begin_copy("retrieve", request.name, tokens, chunks, promised=True)
            return
        found = worker.prepare("prepare_retrieve", tokens, start, request.hits, request.name)
        slots = [(hashes_of(request.tokens)[chunk], slot) for chunk, slot in found]
        assert len(slots) == len(chunks)
        key = worker.key(tokens, start, request.hits, request.name)
        self.slots.append(Slots(worker, key, slots, is_read=True))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), how=st.sampled_from(["free", "end_session"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        request = self._pick(self.requests, data)
        if how == "end_session":
            self.node.ask("end_session", request.name)
        elif request.hits:
            key = request.worker.key(request.tokens, 0, request.hits, request.name)
            self.node.ask("free_lookup_locks", {**key, "worker_id": None}, 1)

    def leases_expire(self) -> None:
        self.node.core.leases.expire(float("inf"))
        self.requests.clear()

    # --- L2 ---

    @precondition(lambda self: self.threads.waiting)
    @rule(data=st.data())
    def a_call_runs(self, data: st.DataObject) -> None:
        self.threads.run(data.draw(st.integers(0, len(self.threads.waiting) - 1)))

    @precondition(lambda self: self.threads.ended)
    @rule(data=st.data())
    def a_result_arrives(self, data: st.DataObject) -> None:
        self.threads.arrive(data.draw(st.integers(0, len(self.threads.ended) - 1)))

    @precondition(lambda self: self.threads.waiting or self.threads.ended)
    @rule()
    def all_calls_end(self) -> None:
        """So that what takes many of them happens, too."""
        while self.threads.waiting or self.threads.ended:
            while self.threads.waiting:
                self.threads.run(0)
            while self.threads.ended:
                self.threads.arrive(0)
                self.turn()

    def calls_are_overdue(self) -> None:
        for backend in self.bench.tiers.backends:
            backend.tick(time.monotonic() + 1000)

    def time_passes(self, seconds: float = 40.0) -> None:
        self.seconds += seconds

    def lookups_are_overdue(self) -> None:
        self.bench.fire_timers()

    def tick(self) -> None:
        self.node.liveness.tick()

    def backends_fail(self) -> None:
        self.failure = TierError("EIO") if self.failure is None else None

    def disks_are_full(self) -> None:
        self.failure = NoSpace("ENOSPC") if self.failure is None else None

    def workers_transfer(self) -> None:
        """Writes to L2 give way then, for a while."""
        self.bench.busy = not self.bench.busy

    @precondition(lambda self: any(adapter.records for adapter in self.adapters))
    @rule(data=st.data(), how=st.sampled_from(["flip", "lose", "swap", "cut"]))
    def a_record_is_damaged(self, data: st.DataObject, how: str) -> None:
        found = [adapter for adapter in self.adapters if adapter.records]
        adapter = found[data.draw(st.integers(0, len(found) - 1))]
        records, names = adapter.records, sorted(adapter.records, key=lambda name: name.path)
        name, other = (names[data.draw(st.integers(0, len(names) - 1))] for _ in range(2))
        record = records[name]
        adapter.spoiled |= {name, other} if how == "swap" else {name}
        if how == "flip" and record:
            records[name] = _flipped(record, data.draw(st.integers(0, len(record) - 1)))
        elif how == "lose":
            del records[name]
        elif how == "swap":
            records[name], records[other] = records[other], records[name]
        else:
            records[name] = record[:-4096]

    # --- What is protected for operators ---

    @precondition(lambda self: self._protected_if_asked())
    @rule(data=st.data(), chunks=st.integers(1, 4))
    def protect(self, data: st.DataObject, chunks: int) -> None:
        """The beginning of a prompt that is there, unless that is too much."""
        model, tokens = data.draw(st.sampled_from(self._protected_if_asked()))
        protecting, hashes = self.node.service.protecting, hashes_of(tokens)[:chunks]
        with suppress(TooMuchToProtect):
            shown = protecting.protect_sequence(model, 1, "", hashes, 20.0, self.seconds)
            assert 0 < shown.chunks <= chunks

    def _protected_if_asked(self) -> list[tuple[str, Prompt]]:
        """Models and prompts of which the L1 has the first chunk."""
        return [
            (space.key.model_name, tokens)
            for space in self.bench.l1.spaces()
            for tokens in PROMPTS
            if hashes_of(tokens)[0] in space.ready
        ]

    @precondition(lambda self: len(self.bench.l1.protections))
    @rule(data=st.data())
    def let_go_of_what_is_protected(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([each.id for each in self.bench.l1.protections]))
        assert self.node.service.protecting.remove(id)

    @rule()
    def what_is_protected_expires(self) -> None:
        self.node.service.tick()
        assert all(each.deadline > self.seconds - 1 for each in self.bench.l1.protections)

    # --- What takes things away ---

    @rule(count=st.integers(1, SLOTS))
    def evict(self, count: int) -> None:
        self.bench.l1.evict(count, 0)

    @precondition(lambda self: self.requests or self.threads.waiting)
    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        self.node.call("clear", force)  # answered when it lasts
        self.was_cleared = True  # with what is protected
        assert not self.bench.l1.objects
        self.stored = self._being_stored()
        if force:
            self.requests.clear()  # promises are not kept then

    def _being_stored(self) -> set[tuple[str, bytes]]:
        """Of these nobody knows whether the clear or the store comes first."""
        copies = [copy for copy in self.copies if not copy.is_load]
        slots = [slots for slots in self.slots if not slots.is_read]
        return {
            *((c.worker.model, hashes_of(c.tokens)[n]) for c in copies for n in c.chunks),
            *((s.worker.model, chunk_hash) for s in slots for chunk_hash, _ in s.slots),
        }

    def the_engine_driven_worker_leaves(self) -> None:
        """By its own word, so it touches its slots no more."""
        self.node.ask("unregister_kv_cache_engine_driven_context", self.driven.number)
        self.slots.clear()
        self.driven.register()

    def the_handle_worker_is_forgotten(self) -> None:
        """It registers again while its copies are under way; these are not reported as done."""
        instance = self.handle.instance
        assert instance is not None
        self.node.service._registrations.forget(instance)
        self.copies.clear()
        self.handle.register()

    @rule(what=st.sampled_from(DISTURBANCES))
    def disturb(self, what: str) -> None:
        """One rule for all that is rare, so that most steps are requests and calls of L2."""
        getattr(self, what)()

    # --- What must be so after each step ---

    def turn(self) -> None:
        self.bench.flows.run()
        while self.bench.run_posted():
            pass
        waiting, self.copies = self.copies, []
        for copy in waiting:
            if not self.node.answered(copy.uid):
                self.copies.append(copy)
                continue
            done = self.node.reply(copy.uid)[1]
            assert done or not copy.must_succeed
            for block, chunk in zip(copy.blocks, copy.chunks, strict=True):
                if done and copy.is_load:
                    expected = content(copy.worker.model, hashes_of(copy.tokens)[chunk])
                    assert (copy.worker.memory.blocks[block] == expected).all()

    @invariant()
    def readers_of_the_changes_know_what_is_there(self) -> None:
        if hasattr(self, "bench"):
            self.told.check(self.bench.l1, self.bench.tiers.backends)

    @invariant()
    def all_accounts_are_true(self) -> None:
        if hasattr(self, "bench"):
            self.turn()
            self.bench.check()

    @invariant()
    def what_can_be_found_is_what_it_should_be(self) -> None:
        if not hasattr(self, "bench"):
            return
        for space in self.bench.l1.spaces():
            for chunk_hash, entry in space.ready.items():
                stored = self.bench.arena[entry.offset : entry.offset + entry.size]
                assert (stored == content(space.key, chunk_hash)).all()
                assert (space.key.model_name, chunk_hash) in self.stored, "it outlived a clear"

    @invariant()
    def nobody_else_writes_to_a_workers_slot(self) -> None:
        for slots in getattr(self, "slots", []):
            for chunk_hash, slot in slots.slots:
                if slots.is_read or slots.written:
                    assert (slot == content(slots.worker.model, chunk_hash)).all()

    @invariant()
    def promises_are_kept(self) -> None:
        for request in getattr(self, "requests", []):
            lookup = self.bench.leases.find(request.name, b"client")
            if request.hits and lookup is not None:
                for (entry,) in lookup.objects[0][: request.hits]:
                    assert entry.state in MAY_PIN

    @invariant()
    def what_is_protected_is_there(self) -> None:
        """But for what was cleared; and it is never more than the limit."""
        if hasattr(self, "bench"):
            protections = self.bench.l1.protections
            assert protections.nbytes <= protections.limit
            for entry in protections.entries():
                assert entry.state is State.READY or self.was_cleared

    @invariant()
    def heads_outlive_tails(self) -> None:
        """But for what is easily had again from L2, or came back when its tail was hot already."""
        if not hasattr(self, "bench"):
            return
        for space in self.bench.l1.spaces():
            for tokens in PROMPTS:
                found = [space.ready.get(chunk_hash) for chunk_hash in hashes_of(tokens)]
                there = [entry for entry in found if entry is not None and entry.evictable]
                for head, tail in itertools.pairwise(there):
                    assert head.place > tail.place or _is_worth_less(head, tail)

    def teardown(self) -> None:
        """When everybody is through, nothing is held, and what a backend has whole is a hit."""
        if not hasattr(self, "bench"):
            return
        self.failure, self.bench.busy = None, False
        self.node.ask("unregister_kv_cache_engine_driven_context", self.driven.number)
        while self.node.copies.waiting:
            self.node.copies.run()
            self.turn()
        self.bench.tiers.prefetches.finish_all()
        self.leases_expire()
        self.bench.l1.protections.expire(float("inf"))
        for _ in range(8):
            self.time_passes()
            self.all_calls_end()
            self.calls_are_overdue()
            self.bench.tick()
            self.turn()
        bench = self.bench
        assert not self.copies and bench.tiers.prefetches.active == 0
        assert (bench.l1.held, bench.l1.writing, bench.leases.live, bench.leases.open) == (0,) * 4
        assert (bench.tiers.writes.objects, bench.tiers.writes.bytes) == (0, 0)
        bench.check()
        for backend, adapter in zip(bench.tiers.backends, self.adapters, strict=True):
            assert bench.tiers.loads.in_flight(backend) == (0, 0)
            self._check_catalog(backend, adapter)
        self._check_events()
        self._check_hits()
        self.node.close()
        self.cleanup.close()

    def _check_catalog(self, backend: Backend, adapter: Slow) -> None:
        """It names what the backend has, but for what was damaged behind its back."""
        catalog, tag = backend.catalog, backend.epoch.tag or ""
        known = {name.in_epoch(tag): catalog.size(name) for name in catalog.names()}
        assert catalog.used_bytes == sum(known.values())
        assert all(known.get(name, len(adapter.records[name])) for name in adapter.whole)
        if not adapter.shared:  # else the catalog is but a hint
            assert {name.epoch for name in adapter.records} <= {tag}, "left over"
            assert known.keys() <= adapter.whole | adapter.spoiled, "known, and not there"
            assert adapter.whole <= known.keys(), "there, and never to be found or deleted"

    def _check_events(self) -> None:
        """Who heeds all of them knows where chunks are, of those whose tokens are known."""
        for _ in range(4):
            self.bench.fire_timers()
            self.turn()
        held = set[tuple[Medium, str, bytes]]()
        for event in self.history.since(0, 1 << 20).events:
            names = {(event.medium, event.model_name, each) for each in event.hashes}
            held = held - names if event.chunk is None else held | names
        there = objects(self.bench.l1, self.bench.tiers.backends)
        assert held == {
            (medium, space.model_name, name)
            for medium, space, name in there
            if self.node.core.chunks.get(name) is not None
        }

    def _check_hits(self) -> None:
        """Whatever the backends have whole is a hit."""
        assert self.handle.instance is not None
        space = SpaceKey(self.handle.model, 1, 0, "", self.handle.instance.fingerprint)
        for tokens in PROMPTS:
            self.bench.l1.clear(force=True)
            names = [object_name(space, chunk_hash) for chunk_hash in hashes_of(tokens)]
            before = self._whole(names)
            # A backend that was cut off gets one call first, to see whether it works again.
            hits = max(self._hits(tokens) for _ in range(3))
            # What is brought nearer may take the room of another chunk there.
            whole = [was and is_now for was, is_now in zip(before, self._whole(names), strict=True)]
            assert hits >= [*whole, False].index(False)

    def _whole(self, names: list[ObjectName]) -> list[bool]:
        """Which of these a backend has as they should be."""
        pairs = list(zip(self.bench.tiers.backends, self.adapters, strict=True))
        return [
            any(name.in_epoch(b.epoch.tag or "") in adapter.whole for b, adapter in pairs)
            for name in names
        ]

    def _hits(self, tokens: list[int]) -> int:
        """Of a lookup from its begin to its end."""
        self.lookup(tokens, CHUNKS, of_handle=True, asks_at_once=False)
        self.all_calls_end()
        hits: int = self.node.ask("query_prefetch_status", self.requests[-1].name)
        self.leases_expire()
        return hits


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMachine = Machine.TestCase
