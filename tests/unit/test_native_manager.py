"""Whatever the sidecar does: the manager answers, raises nothing, and uses only what is its own.

An engine with vLLM's order of calls over a sidecar in memory that drops, delays, forgets, restarts
and answers nonsense, as hypothesis says. What its workers write and read is checked byte for byte:
here, key for key. So is what routers are told in the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.fake_sidecar import OBJECT_BYTES, OBJECTS, STEP, FakeSidecar, Life

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key

from connectors.native import allowance, wire
from connectors.native.manager import SidecarOffloadingManager

EXAMPLES = int(os.environ.get("KV_SIDECAR_MACHINE_EXAMPLES", "60"))
CHUNKS = 3
FULL, WINDOW = 0, 1  # groups
TROUBLES = (
    *("reset", "hold", "hold", "ranks", "garbage", "deaf", "break_connection", "restart"),
    *("forget", "lose_answers"),
)


def moved(by: int, value: Any) -> Any:
    """Slots somewhere else."""
    if isinstance(value, list):
        return [moved(by, each) for each in value]
    return value + by if type(value) is int and value >= 0 else value


GARBAGE = [
    *(b"\xc1", None, 7, "text", [], [[]], [[0]], [[-3, 0]], [2**40], [0, 0], [-1], {"a": 1}),
    # Behind the arena, and where an object reaches beyond it.
    partial(moved, OBJECTS * STEP),
    partial(moved, (OBJECTS - 1) * STEP + 1),
]
ATTACH = wire.Attach(
    engine="e", incarnation=bytes(16), model="m", ranks=1, groups=2, object_bytes=OBJECT_BYTES,
    chunk_tokens=16, identity=bytes(32),
)  # fmt: skip


def key(group: int, prompt: int, chunk: int) -> bytes:
    """The first chunk is the same in all prompts."""
    return make_offload_key(bytes([prompt if chunk else 0, chunk]) * 16, group)


def described(offload_key: bytes) -> BlockStored:
    group, block = content(offload_key)
    return BlockStored(
        block_hashes=[maybe_convert_block_hash(block)], parent_block_hash=None,
        token_ids=[*range(16)], block_size=16, lora_id=7, medium="CPU", lora_name=None,
        group_idx=group,
    )  # fmt: skip


def content(offload_key: bytes) -> tuple[int, bytes]:
    return int.from_bytes(offload_key[-4:], "big"), offload_key[:-4]


@dataclass(eq=False)
class Request:
    context: ReqContext
    prompt: int
    state: str = "waiting"  # waiting, loading, running, finished
    stored: bool = False

    def keys(self, group: int) -> list[bytes]:
        return [key(group, self.prompt, chunk) for chunk in range(CHUNKS)]


@dataclass(eq=False)
class Job:
    """A copy of the workers: of `keys`, in the slots of one life of the sidecar."""

    request: Request
    keys: list[bytes]
    slots: list[int]
    life: Life | None
    is_store: bool
    cut: bool = False
    pairs: list[tuple[bytes, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.pairs = list(zip(self.keys, self.slots, strict=True))


class Router:
    """What a router knows from the events of an engine. It counts, so each is told once."""

    def __init__(self) -> None:
        self.known: set[tuple[int, object, str]] = set()

    def learn(self, events: Iterable[KVCacheEvent]) -> None:
        for event in events:
            found = {(event.group_idx, block, event.medium) for block in event.block_hashes}
            if isinstance(event, BlockStored):
                assert not found & self.known, "told twice"
                self.known |= found
            else:
                assert isinstance(event, BlockRemoved) and found <= self.known, "never told"
                self.known -= found


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.sidecar = FakeSidecar()
        self.manager = SidecarOffloadingManager(
            lambda: ATTACH, self.sidecar.connect, OBJECT_BYTES, 0.9, lambda: self.now
        )
        self.requests: list[Request] = []
        self.jobs: list[Job] = []
        self.count = 0
        self.router = Router()

    @initialize(well=st.sampled_from([True, True, False]), announces=st.booleans())
    def start(self, well: bool, announces: bool) -> None:
        self.sidecar.life.ready = well
        self.manager.announcements.on = announces
        for _ in range(3 if well else 0):
            self.manager.on_schedule_end(ScheduleEndContext((), ()))
            self.sidecar.deliver()
            self.now += 0.1

    # ------------------------------------------------------------- the engine

    @precondition(lambda self: len(self.requests) < 5)
    @rule(prompt=st.integers(1, 3))
    def begin(self, prompt: int) -> None:
        self.count += 1
        request = Request(ReqContext(req_id=f"r{self.count}"), prompt)
        for group in (FULL, WINDOW):
            for chunk, each in enumerate(request.keys(group)):
                request.context.set_offload_key_position(each, 16 * (chunk + 1))
        self.manager.on_new_request(request.context)
        self.requests.append(request)

    @rule(prompt=st.integers(1, 3), steps=st.integers(1, 5), complete=st.booleans())
    def run_well(self, prompt: int, steps: int, complete: bool) -> None:
        """A request while nothing bad happens, perhaps to its end."""
        if len(self.requests) < 5:
            self.begin(prompt)
        for _ in range(steps):
            self.step()
            self.sidecar.deliver()
            self.sidecar.release()
            self.now += 0.1
            for job in [job for job in self.jobs if not job.cut and complete]:
                self._end(job)

    @rule()
    def step(self) -> None:
        """As vLLM 0.32 does it: lookups and loads, `on_schedule_end`, stores, ends."""
        for job in [job for job in self.jobs if job.cut]:
            self._copy(job)
        scheduled = []
        for request in self.requests:
            busy = any(job.request is request and not job.cut for job in self.jobs)
            if request.state == "waiting" and not busy:
                hits = self._look_up(request)
                if hits:
                    self._load(request, hits)
                elif hits == 0:
                    request.state = "running"
                    scheduled.append(request.context.req_id)
        self.manager.on_schedule_end(ScheduleEndContext(scheduled, ()))
        for request in self.requests:
            if request.state in ("running", "finished") and not request.stored:
                self._store(request)
        for request in [r for r in self.requests if r.state == "finished"]:
            self.manager.on_request_finished(request.context)
            self.requests.remove(request)
        self._tell_router()

    def _tell_router(self) -> None:
        """As connector.py does it, with descriptions that vLLM would make."""
        announcements = self.manager.announcements
        questions = list(self.manager.take_events())
        assert announcements.on or not (questions or self.manager.has_pending_work())
        asked = [key for question in questions if not question.removed for key in question.keys]
        announcements.describe([described(key) for key in asked])
        self.router.learn(announcements.events())

    def _look_up(self, request: Request) -> int | None:
        """How many chunks can be loaded; None: ask again. Simplified from vLLM's scheduler."""
        hits, pending = 0, False
        for each in request.keys(FULL):
            result = self.manager.lookup(each, request.context)
            if result is LookupResult.MISS:
                break
            pending |= result is not LookupResult.HIT
            hits += result is not LookupResult.RETRY
        for end in range(CHUNKS if pending else hits, 0, -1):
            result = self.manager.lookup(request.keys(WINDOW)[end - 1], request.context)
            if result is LookupResult.HIT:
                return None if pending else end
            pending |= result is not LookupResult.MISS
            if result is LookupResult.HIT_PENDING:
                return None
        return None if pending else 0

    def _load(self, request: Request, hits: int) -> None:
        keys = [*request.keys(FULL)[:hits], request.keys(WINDOW)[hits - 1]]
        spec = self.manager.prepare_load(keys, request.context)
        life = self.sidecar.life_of(spec.server)
        job = Job(request, keys, spec.block_ids.tolist(), life, False)
        self._check_loaded(job)
        request.state = "loading"
        self.jobs.append(job)

    def _store(self, request: Request) -> None:
        keys = [*request.keys(FULL), *request.keys(WINDOW)]
        output = self.manager.prepare_store(keys, request.context)
        if output is None:
            return
        request.stored = True
        stored = output.keys_to_store
        assert [each for each in keys if each in stored] == stored
        slots = output.store_spec.block_ids.tolist()
        life = self.sidecar.life_of(output.store_spec.server) if stored else None
        job = Job(request, stored, slots, life, True)
        taken = {slot for other in self.jobs if other.life is life for slot in other.slots}
        assert taken.isdisjoint(slots), "a slot for two"
        if stored:
            self.jobs.append(job)

    @precondition(lambda self: any(not job.cut for job in self.jobs))
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs if not job.cut]))
        self._end(job)

    def _copy(self, job: Job) -> None:
        """The workers end a copy, wherever the scheduler thinks that they are."""
        self.jobs.remove(job)
        assert job.life is not None
        if not job.is_store:
            self._check_loaded(job)
            return
        for each, slot in job.pairs:
            assert job.life.is_reserved(slot), "written to after it was given back"
            job.life.arena[slot] = content(each)

    @staticmethod
    def _check_loaded(job: Job) -> None:
        assert job.life is not None
        for each, slot in job.pairs:
            assert job.life.is_pinned(slot) and job.life.arena[slot] == content(each)

    @precondition(lambda self: any(r.state in ("running", "loading") for r in self.requests))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Also by an abort, in its load."""
        live = [r for r in self.requests if r.state in ("running", "loading")]
        data.draw(st.sampled_from(live)).state = "finished"

    @precondition(lambda self: any(r.state == "running" for r in self.requests))
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        running = [r for r in self.requests if r.state == "running"]
        data.draw(st.sampled_from(running)).state = "waiting"

    def reset(self) -> None:
        """vLLM flushes in its next step what is being copied, and tells nobody of its end."""
        for job in self.jobs:
            job.cut = True
        for request in self.requests:
            request.stored = False
            if request.state == "loading":
                request.state = "waiting"
        self.manager.reset_cache()

    # ------------------------------------------------------------ the sidecar

    @rule(count=st.integers(1, 20))
    def deliver(self, count: int) -> None:
        self.sidecar.deliver(count)

    @rule()
    def all_is_well(self) -> None:
        """And a session can be had again."""
        self.sidecar.listens = self.sidecar.life.ready = True
        self.sidecar.hold_lookups = False
        for _ in range(4):
            self.manager.on_schedule_end(ScheduleEndContext((), ()))
            self.sidecar.deliver()
            self.sidecar.release()
            self.now += 0.4

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 4.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        life = self.sidecar.life
        if life.objects:
            life.evict(data.draw(st.sampled_from(sorted(life.objects))))

    @rule(data=st.data(), kind=st.sampled_from(TROUBLES), ends=st.booleans())
    def trouble(self, data: st.DataObject, kind: str, ends: bool) -> None:
        sidecar = self.sidecar
        match kind:
            case "reset":
                self.reset()
            case "hold":
                sidecar.hold_lookups = not ends
            case "ranks":
                sidecar.life.ready = ends
            case "garbage":
                sidecar.garbage = data.draw(st.sampled_from(GARBAGE))
            case "deaf":
                sidecar.listens = ends
                sidecar.break_connection()
            case "lose_answers":
                sidecar.deliver()
                sidecar.break_connection()
            case _:
                getattr(sidecar, kind)()

    # -------------------------------------------------------------- what holds

    @invariant()
    def what_is_copied_is_held(self) -> None:
        for job in self.jobs:
            assert job.life is not None
            for each, slot in job.pairs:
                if job.is_store:
                    assert job.life.is_reserved(slot)
                else:
                    assert job.life.is_pinned(slot) and job.life.arena[slot] == content(each)

    def teardown(self) -> None:
        """In the end all is given back, as far as the sidecar told what it gave."""
        sidecar = self.sidecar
        for job in list(self.jobs):
            if job.cut:
                self._copy(job)
            else:
                self._end(job)
        self.manager.on_reset_flushed()
        for request in self.requests:
            self.manager.on_request_finished(request.context)
        sidecar.listens, sidecar.hold_lookups, sidecar.garbage = True, False, None
        sidecar.life.ready = True
        for _ in self._until_quiet():
            sidecar.deliver()
            sidecar.release()
            self.manager.on_schedule_end(ScheduleEndContext((), ()))
            self._tell_router()
        assert not self.manager.has_pending_work()
        seat = sidecar.life.seat
        assert seat is not None
        if self.count and self.manager.announcements.on:
            self._check_router(sidecar.life)
        if not sidecar.replies_lost:
            assert not any(seat.pins.values()), "pins are left"
            ahead = len(self.manager._stores._pool)
            assert len(seat.reserved) == ahead, "slots are left"
        self.manager.shutdown()

    def _check_router(self, life: Life) -> None:
        """It knows of all that has a description, where it is."""
        there = {key: media for key, (media, said) in life.holdings().items() if said}
        blocks = {key: (key[0], maybe_convert_block_hash(key[1])) for key in there}
        in_l1 = {(*blocks[key], "CPU") for key, media in there.items() if media & wire.IN_L1}
        in_l2 = {(*blocks[key], "STORAGE") for key, media in there.items() if media & wire.IN_L2}
        assert self.router.known == in_l1 | in_l2

    def _end(self, job: Job) -> None:
        self._copy(job)
        complete = self.manager.complete_store if job.is_store else self.manager.complete_load
        complete(set(job.keys), job.request.context)
        if not job.is_store and job.request.state == "loading":
            job.request.state = "running"

    def _until_quiet(self) -> Iterator[None]:
        for _ in range(60):
            self.now += 0.5
            yield


class TestManager(Machine.TestCase):
    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


@pytest.mark.parametrize("trouble", ["break_connection", "restart"])
def test_a_reset_reaches_the_sidecar_whatever_happens(trouble: str) -> None:
    """For what it has was made by a model that is no more: one that restarts may have it in L2."""
    sidecar, now = FakeSidecar(), [1000.0]
    manager = SidecarOffloadingManager(
        lambda: ATTACH, sidecar.connect, OBJECT_BYTES, 0.9, lambda: now[0]
    )

    def step() -> None:
        manager.on_schedule_end(ScheduleEndContext((), ()))
        sidecar.deliver()
        now[0] += 0.1

    def look_up(name: str) -> LookupResult:
        context = ReqContext(req_id=name)
        while (said := manager.lookup(key(FULL, 1, 0), context)) is LookupResult.RETRY:
            step()
        manager.on_request_finished(context)
        return said

    def store() -> None:
        sidecar.life.objects[content(key(FULL, 1, 0))] = 0
        sidecar.life.arena[0] = content(key(FULL, 1, 0))

    store()
    step()
    step()
    assert look_up("before") is LookupResult.HIT
    manager.reset_cache()
    getattr(sidecar, trouble)()
    store()

    for number in range(30):
        assert look_up(str(number)) is LookupResult.MISS
        step()

    assert manager._session.usable
    assert not sidecar.life.objects and not sidecar.life.below


LAST = (OBJECTS - 1) * STEP  # where an object just fits


class Steps:
    """A manager whose sidecar has told it that it is ready, step by step."""

    def __init__(self) -> None:
        self.sidecar, self.now = FakeSidecar(), 1000.0
        self.manager = SidecarOffloadingManager(
            lambda: ATTACH, self.sidecar.connect, OBJECT_BYTES, 0.9, lambda: self.now
        )
        self.step()

    def step(self) -> None:
        self.manager.on_schedule_end(ScheduleEndContext((), ()))
        self.sidecar.deliver()
        self.now += 0.1

    def ask(self, keys: list[bytes], name: str = "r") -> tuple[ReqContext, list[LookupResult]]:
        context = ReqContext(req_id=name)
        for chunk, each in enumerate(keys):
            context.set_offload_key_position(each, 16 * (chunk + 1))
        return context, self.again(keys, context)

    def again(self, keys: list[bytes], context: ReqContext) -> list[LookupResult]:
        return [self.manager.lookup(each, context) for each in keys]


somewhere = st.one_of(
    st.sampled_from([-3, -1, 0, LAST, LAST + 1, OBJECTS * STEP, 2**31 - 1, 2**31, 2**40]),
    st.integers(0, LAST),
)


@given(said=st.lists(somewhere, min_size=1, max_size=CHUNKS))
def test_a_slot_that_is_not_in_the_arena_is_not_written_to(said: list[int]) -> None:
    """vLLM ends over a job that is refused."""
    steps = Steps()
    steps.manager.on_schedule_end(ScheduleEndContext((), ()))
    steps.sidecar.deliver(1)  # a ping, and then the reservation
    steps.sidecar.garbage = said
    steps.sidecar.deliver()
    keys = [key(FULL, 1, chunk) for chunk in range(CHUNKS)]
    context, _ = steps.ask(keys)
    slots: list[int] = []
    for _ in range(5):
        output = steps.manager.prepare_store(keys, context)
        slots += output.store_spec.block_ids.tolist() if output else []

    assert all(0 <= slot <= LAST for slot in slots)
    if all(0 <= slot <= LAST for slot in said) and len(set(said)) == len(said):
        assert slots[: len(said)] == said


@given(said=st.lists(somewhere, min_size=CHUNKS, max_size=CHUNKS))
def test_a_slot_that_is_not_in_the_arena_is_not_read(said: list[int]) -> None:
    steps = Steps()
    steps.step()
    keys = [key(FULL, 1, chunk) for chunk in range(CHUNKS)]
    context, _ = steps.ask(keys)
    steps.manager.on_schedule_end(ScheduleEndContext((), ()))
    steps.sidecar.garbage = [said]
    steps.sidecar.deliver(1)
    steps.manager.on_schedule_end(ScheduleEndContext((), ()))
    found = steps.again(keys, context)
    hits = [each for each, result in zip(keys, found, strict=True) if result is LookupResult.HIT]
    slots = steps.manager.prepare_load(hits, context).block_ids.tolist() if hits else []

    assert all(0 <= slot <= LAST for slot in slots)
    if all(-2 <= slot <= LAST for slot in said):
        assert slots == [slot for slot in said if slot >= 0]


def test_many_prompts_at_once_are_looked_up_in_several_steps() -> None:
    """Each message takes a while, to be written or read; none of them waits for ever."""
    sidecar, now = FakeSidecar(), [1000.0]
    sidecar.room = 1000

    def clock() -> float:
        now[0] += allowance.SECONDS / 8
        return now[0]

    manager = SidecarOffloadingManager(lambda: ATTACH, sidecar.connect, OBJECT_BYTES, 60.0, clock)
    each = key(FULL, 1, 0)
    sidecar.life.objects[content(each)] = 0
    for _ in range(3):
        manager.on_schedule_end(ScheduleEndContext((), ()))
        sidecar.deliver()
    waiting = {f"r{number}": ReqContext(req_id=f"r{number}") for number in range(60)}
    steps = 0
    while waiting:
        steps += 1
        assert steps < 100 and sidecar.connection is not None
        unread = len(sidecar.connection.answers)
        for name, context in list(waiting.items()):
            if manager.lookup(each, context) is LookupResult.HIT:
                del waiting[name]
        manager.on_schedule_end(ScheduleEndContext((), ()))
        assert unread - len(sidecar.connection.answers) <= 10
        sent = [msgspec.msgpack.decode(frames[1]) for frames in sidecar.connection.sent]
        assert sent.count(wire.LOOKUP) <= 10
        sidecar.deliver()
    assert steps > 6
