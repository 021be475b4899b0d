"""The native door against a simple model: who may touch a slot, and what a hit may be.

Engines of two ranks come, reserve, write, publish, look up, lose their connections, come back, and
are killed in the midst of a copy. A slot has one owner as long as any process of it lives.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections import Counter
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.cache.segment import SHM_DIR
from tests.support.native import BELOW, MISS, block_hash
from tests.support.owner_site import Site
from tests.support.tiers import OBJECT_BYTES, PAGE, Memory

SLOT_BYTES = PAGE + OBJECT_BYTES  # with its header
SLOTS, RANKS, NUMBERS, GONE_SECONDS = 12, 2, 8, 35
numbers = st.lists(st.integers(0, NUMBERS - 1), min_size=1, max_size=5, unique=True)
_clients = (f"connection {n}".encode() for n in itertools.count())


class Engine:
    """A scheduler and two workers, as the test knows them.

    The scheduler attaches when so many workers have tried to join; who is refused tries again.
    """

    def __init__(self, site: Site, name: str = "", attach_at: int = RANKS) -> None:
        self.site, self.id = site, name or secrets.token_hex(8)
        self.secret = secrets.token_bytes(16)
        self.members = [next(_clients) for _ in range(RANKS)]
        self.open: list[int] = []
        self.session = 0
        self.written: dict[int, int | None] = {}  # slot -> what the workers have written there
        self.read: dict[str, Counter[int]] = {}  # request -> slots
        self.holds: dict[int, int] = {}  # slot -> the number that was found there
        mapped: set[int] = set()
        for turn in (*range(attach_at), None, *range(attach_at, RANKS), *range(RANKS)):
            if turn is None:
                self.attach()
            elif turn not in mapped and self._map(turn):
                mapped.add(turn)
            if self.session:
                ready = self.call("ping")["ready"]
                assert ready == (len(mapped) == RANKS), "of its own workers"
        assert ready

    def _map(self, rank: int) -> bool:
        ask = {
            "version": 1, "engine": self.id, "incarnation": self.secret, "rank": rank,
            "ranks": RANKS, "object_bytes": OBJECT_BYTES, "layout": bytes(32),
        }  # fmt: skip
        client = self.members[rank]
        joined = self.site.call(client, "native_join", ask)
        if not joined["member"]:
            return False
        self.open.append(os.open(SHM_DIR / str(joined["shm_name"]), os.O_RDWR))
        told = {"member": joined["member"], "server": joined["server"]}
        assert self.site.call(client, "native_mapped", told) is True
        return True

    def attach(self) -> None:
        self.client = next(_clients)
        ask = {
            "version": 1, "engine": self.id, "incarnation": self.secret, "model": "m",
            "ranks": RANKS, "groups": 1, "chunk_tokens": 16, "object_bytes": OBJECT_BYTES,
            "identity": bytes(32),
        }  # fmt: skip
        before, self.session = self.session, self.call("attach", **ask)["session"]
        assert self.session
        if before and self.session != before:  # it came too late: all that it had is void
            self.written.clear()
            self.forget()

    def forget(self) -> None:
        self.read.clear()
        self.holds.clear()

    def call(self, operation: str, **ask: Any) -> Any:
        if operation != "attach":
            ask["session"] = self.session
        node = self.site.node
        uid = node.call(f"native_{operation}", ask, client=self.client)
        node.bench.run_until(lambda: node.answered(uid))
        return node.reply(uid)


class NativeDoor(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.site = Site(SLOTS, Memory())
        self.arena = self.site.node.bench.arena
        self.engines: list[Engine] = []
        self.dying: list[tuple[set[int], list[int]]] = []  # slots, and what is open still
        self.requests = itertools.count()

    def teardown(self) -> None:
        for engine in self.engines:
            self.site.gone |= {engine.client, *engine.members}
            for fd in engine.open:
                os.close(fd)
        for _, fds in self.dying:
            for fd in fds:
                os.close(fd)
        self.site.pass_time(2)
        assert self.site.node.service.snapshot()["engines"] == []
        self.site.node.bench.settle()
        assert self.site.node.bench.l1.held == 0 and self.site.node.bench.l1.writing == 0
        self.site.close()

    @precondition(lambda self: len(self.engines) < 3)
    @rule()
    def start(self) -> None:
        self.engines.append(Engine(self.site))

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), count=st.integers(1, 4))
    def reserve(self, data: st.DataObject, count: int) -> None:
        engine = self.pick(data)
        slots = engine.call("reserve", count=count)
        assert len(slots) <= count and not set(slots) & self.taken()
        engine.written |= dict.fromkeys(slots)

    @precondition(lambda self: any(engine.written for engine in self.engines))
    @rule(data=st.data(), number=st.integers(0, NUMBERS - 1))
    def write(self, data: st.DataObject, number: int) -> None:
        engine = data.draw(st.sampled_from([e for e in self.engines if e.written]))
        slot = data.draw(st.sampled_from(sorted(engine.written)))
        self.bytes(slot)[:] = number + 1
        engine.written[slot] = number

    @precondition(lambda self: any(engine.written for engine in self.engines))
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from([e for e in self.engines if e.written]))
        complete = {s: n for s, n in engine.written.items() if n is not None}
        items = [(0, block_hash(number), slot) for slot, number in complete.items()]
        assert engine.call("publish", request="r", items=items) == len(items)
        for slot in complete:
            del engine.written[slot]

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), wanted=numbers)
    def store(self, data: st.DataObject, wanted: list[int]) -> None:
        """All the way, as most stores go; also what is there already."""
        engine = self.pick(data)
        slots = engine.call("reserve", count=len(wanted))
        assert not set(slots) & self.taken()
        for slot, number in zip(slots, wanted, strict=False):
            self.bytes(slot)[:] = number + 1
        items = [(0, block_hash(n), s) for n, s in zip(wanted, slots, strict=False)]
        assert engine.call("publish", request="r", items=items) == len(items)

    @precondition(lambda self: any(engine.written for engine in self.engines))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        engine = data.draw(st.sampled_from([e for e in self.engines if e.written]))
        assert engine.call("return", slots=list(engine.written))
        engine.written.clear()

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), wanted=numbers, windowed=st.booleans(), load=st.booleans())
    def look_up(self, data: st.DataObject, wanted: list[int], windowed: bool, load: bool) -> None:
        engine, request = self.pick(data), f"r{next(self.requests)}"
        group = {
            "group": 0, "hashes": [block_hash(n) for n in wanted], "windowed": windowed,
            "load": load,
        }  # fmt: skip
        [slots] = engine.call("lookup", request=request, budget_ms=5000, groups=[group])
        assert len(slots) == len(wanted)
        if not windowed:
            assert slots == sorted(slots, key=lambda slot: slot == MISS), "a prefix has no gaps"
            assert BELOW not in slots
        hits = {s: n for s, n in zip(slots, wanted, strict=True) if s >= 0}
        assert not set(hits) & self.written(), "nobody writes to what was found"
        if hits:
            engine.read[request] = Counter(hits)
            engine.holds |= hits

    @precondition(lambda self: any(engine.read for engine in self.engines))
    @rule(data=st.data(), used=st.booleans())
    def finish(self, data: st.DataObject, used: bool) -> None:
        engine = data.draw(st.sampled_from([e for e in self.engines if e.read]))
        request = data.draw(st.sampled_from(sorted(engine.read)))
        assert engine.call("finish", requests=[(request, used)])
        del engine.read[request]

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), seconds=st.sampled_from([0, 1, GONE_SECONDS]))
    def reconnect(self, data: st.DataObject, seconds: int) -> None:
        """A scheduler loses its connection for a while, and what it was being told.

        Its workers go on copying.
        """
        engine = self.pick(data)
        engine.call("reserve", count=2)
        group = {"group": 0, "hashes": [block_hash(n) for n in range(NUMBERS)], "windowed": True}
        engine.call("lookup", request="lost", budget_ms=5000, groups=[group])
        self.site.gone.add(engine.client)
        self.site.pass_time(seconds)
        if seconds >= GONE_SECONDS:  # the slots of before are its workers', who still run
            held = set(engine.written) | {s for r in engine.read.values() for s in r}
            self.dying.append((held, [os.dup(fd) for fd in engine.open]))
        engine.attach()
        assert engine.call("resume", slots=list(engine.written), requests=list(engine.read))
        told = self.site.node.service.snapshot()["engines"]
        [mine] = [each for each in told if each["session"] == engine.session]
        assert mine["reserved_bytes"] == len(engine.written) * SLOT_BYTES
        assert mine["pinned_bytes"] == sum(map(len, engine.read.values())) * SLOT_BYTES

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), connected=st.booleans(), attach_at=st.integers(0, RANKS))
    def restart(self, data: st.DataObject, connected: bool, attach_at: int) -> None:
        """Another engine under the same id, while the workers of the one before still copy."""
        engine = self.pick(data)
        self.engines.remove(engine)
        self.site.gone |= {engine.client, *(() if connected else engine.members)}
        held = set(engine.written) | {s for r in engine.read.values() for s in r}
        self.dying.append((held, engine.open))
        self.engines.append(Engine(self.site, engine.id, attach_at))

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def kill_scheduler(self, data: st.DataObject) -> None:
        """Its workers live on for a moment, and write."""
        engine = self.pick(data)
        self.engines.remove(engine)
        self.site.gone |= {engine.client, *engine.members}
        held = set(engine.written) | {s for r in engine.read.values() for s in r}
        self.dying.append((held, engine.open))
        self.site.pass_time(GONE_SECONDS)

    @precondition(lambda self: self.dying)
    @rule(data=st.data())
    def kill_worker(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.dying) - 1))
        _, fds = self.dying[index]
        os.close(fds.pop())
        if not fds:
            del self.dying[index]
        self.site.pass_time(1)

    @rule(force=st.booleans())
    def clear(self, force: bool) -> None:
        self.site.node.bench.l1.clear(force)

    @rule()
    def time_passes(self) -> None:
        self.site.pass_time(1)

    @invariant()
    def what_is_stored_is_in_l2(self) -> None:
        """What can be evicted, and so what is reserved, must not depend on how fast threads are."""
        self.site.node.bench.settle()

    @invariant()
    def every_owner_finds_its_bytes(self) -> None:
        for engine in self.engines:
            for slot, number in engine.written.items():
                assert number is None or (self.bytes(slot) == number + 1).all()
            for slot in {slot for found in engine.read.values() for slot in found}:
                assert (self.bytes(slot) == engine.holds[slot] + 1).all()

    def pick(self, data: st.DataObject) -> Engine:
        engine: Engine = data.draw(st.sampled_from(self.engines))
        return engine

    def bytes(self, slot: int) -> Any:
        return self.arena[slot * 4096 : slot * 4096 + OBJECT_BYTES]

    def written(self) -> set[int]:
        return {slot for engine in self.engines for slot in engine.written}

    def taken(self) -> set[int]:
        """What no new owner may be given."""
        read = {s for e in self.engines for found in e.read.values() for s in found}
        return self.written() | read | {slot for slots, _ in self.dying for slot in slots}


NativeDoor.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
test_native_door = NativeDoor.TestCase
