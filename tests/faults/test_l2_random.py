"""Random traffic over two backends that fail, dawdle and lose things: nothing leaks or lies.

Every walk has a seed, which is the test's name. KV_SIDECAR_RANDOM_WALKS raises their number.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from sidecar.cache.entry import Entry
from sidecar.cache.leases import Lookup
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import Bytes, Found, NoSpace, TierError, batches
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, Memory, hash_of

WALKS = int(os.environ.get("KV_SIDECAR_RANDOM_WALKS", "24"))
STEPS = 400
NUMBERS = 40  # different objects
SLOTS = 24  # the L1 does not hold them all, nor does a backend
RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that was cut off is back within the walk."""
    monkeypatch.setattr("sidecar.tiers.breaker._FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("sidecar.tiers.breaker._LONGEST_PAUSE_SECONDS", 0.05)


class Rough(Memory):
    """A backend with moods. `spoiled` are the names whose record is not what was stored.

    Deletes are late but do not fail: what a failed one leaves behind is another test's matter.
    """

    def __init__(self, seed: int, shared: bool) -> None:
        super().__init__(shared)
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.spoiled: set[ObjectName] = set()
        self.calm = False
        self.before = self._mood

    def _mood(self, op: str, _: ObjectName | None) -> None:
        with self.lock:
            draw, dawdle = self.random.random(), self.random.random()
        if self.calm:
            return
        if dawdle < 0.3:
            time.sleep(0.02 * dawdle if dawdle > 0.01 else 0.15)
        if op in ("store", "load", "find") and draw < 0.08:
            raise NoSpace("full") if op == "store" and draw < 0.03 else TierError("EIO")

    def store(self, name: ObjectName, record: Bytes) -> None:
        super().store(name, record)
        with self.lock:
            self.spoiled.discard(name)

    def delete(self, names: Sequence[ObjectName]) -> None:
        super().delete(names)
        with self.lock:
            self.spoiled.difference_update(names)

    def scan(self) -> Iterator[list[Found]]:
        self._call("scan")
        return batches([Found(n, len(d), 0.0) for n, d in list(self.records.items())], 3)

    def spoil(self) -> None:
        """Lose, cut short or change one record."""
        with self.lock:
            if not self.records:
                return
            name = self.random.choice(list(self.records))
            data = bytearray(self.records.pop(name))
            self.spoiled.add(name)
            kind = self.random.randrange(3)
            if kind == 0:
                self.records[name] = bytes(data[: -4096 * self.random.randint(1, 2)])
            elif kind == 1 and data:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
                self.records[name] = bytes(data)


class Walk:
    """One server's life. `clean` are the objects that may be hits: stored since a clear."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shared = seed % 3 == 0
        self.adapters = [Rough(seed, False), Rough(seed + 1, self.shared)]
        capacity = 0.0 if self.shared else (NUMBERS // 2) * RECORD_BYTES / 2**30
        policy = replace(
            DEFAULTS,
            timeout_seconds=self.random.choice([0.01, 0.05, 5.0]),
            max_in_flight=self.random.choice([1, 3, 8]),
            queue_objects=self.random.choice([4, 1000]),
            skip_l1=seed % 5 == 0,
            retain=seed % 2 == 0,
        )
        self._fill()
        settings = {"max_capacity_gb": capacity, "num_workers": 4, "timeout_seconds": 0.05}
        self.bench = Bench(*self.adapters, slots=SLOTS, policy=policy, settings=settings)
        self.bench.tiers.start()
        self.open: dict[str, tuple[Lookup, list[int], set[int]]] = {}
        self.ended = 0
        self.clean = set(range(NUMBERS))

    def _fill(self) -> None:
        """What an earlier server has left in the first backend."""
        self.adapters[0].calm = True
        old = Bench(self.adapters[0], slots=SLOTS).start()
        old.store(*range(8))
        old.settle()
        old.tiers.close()
        self.adapters[0].calm = False

    def run(self) -> None:
        actions = [self.store] * 5 + [self.begin] * 6 + [self.end] * 4 + [self.wait] * 3
        actions += [self.evict, self.tick, self.spoil, self.supersede, self.toggle_busy]
        for step in range(STEPS):
            self.random.choice(actions)()
            if step % 133 == 100:
                self.clear()
            self.turn()

    # --- What may happen ---

    def store(self) -> None:
        first = self.random.randrange(NUMBERS)
        entries = []
        for number in range(first, min(first + self.random.randint(1, 6), NUMBERS)):
            if not self.bench.l1.knows(SPACE, hash_of(number)):
                entry = self.bench.l1.reserve(SPACE, hash_of(number), OBJECT_BYTES)
                if entry is not None:
                    self._write(entry, number)
                    entries.append(entry)
                    self.clean.add(number)
        self.bench.l1.publish(SPACE, entries, [entry.hash for entry in entries])
        self.bench.tiers.stored(entries)

    def _write(self, entry: Entry, number: int) -> None:
        self.bench.arena[entry.offset : entry.offset + entry.size] = number % 251

    def begin(self) -> None:
        first = self.random.randrange(NUMBERS)
        numbers = list(range(first, min(first + self.random.randint(1, 12), NUMBERS)))
        request = f"r{self.ended + len(self.open)}-{self.random.random()}"
        # What was on its way at a clear may be found by those that began before it.
        self.open[request] = (self.bench.begin(request, *numbers), numbers, self.clean)

    def end(self) -> None:
        if self.open:
            self._end(self.random.choice(list(self.open)))

    def _end(self, request: str) -> None:
        lookup, numbers, clean = self.open.pop(request)
        if request in self.bench.results:
            self._check(request, lookup, numbers, clean)
        self.bench.leases.end(lookup)
        self.ended += 1

    def _check(self, request: str, lookup: Lookup, numbers: list[int], clean: set[int]) -> None:
        hits = self.bench.results[request]
        assert hits == lookup.hits <= len(numbers)
        for number, (entry,) in zip(numbers, lookup.objects[0], strict=False):
            data = self.bench.arena[entry.offset : entry.offset + entry.size]
            assert (data == number % 251).all(), f"the bytes of {number} are not its own"
            assert number in clean, f"{number} has survived a clear"

    def wait(self) -> None:
        end = time.monotonic() + self.random.random() * 0.02
        self.bench.run_until(lambda: time.monotonic() > end)

    def evict(self) -> None:
        self.bench.l1.evict(self.random.randint(1, 10), 0)

    def tick(self) -> None:
        self.bench.tick()

    def spoil(self) -> None:
        self.random.choice(self.adapters).spoil()

    def supersede(self) -> None:
        """A fuller object is offered for one that is there."""
        space = self.bench.l1.space(SPACE)
        if space is None or not space.ready:
            return
        entry = self.random.choice(list(space.ready.values()))
        if self.bench.l1.discard(entry):
            self.bench.tiers.superseded(SPACE, entry.hash)
            fresh = self.bench.l1.reserve(SPACE, entry.hash, OBJECT_BYTES)
            if fresh is not None:
                self._write(fresh, int.from_bytes(entry.hash))
                self.bench.l1.commit(fresh)
                self.bench.tiers.stored([fresh])

    def toggle_busy(self) -> None:
        self.bench.busy = not self.bench.busy

    def clear(self) -> None:
        """Everything goes, and what was promised before is given back as after a forced clear."""
        for request in list(self.open):
            self._end(request)
        self.bench.l1.clear(force=True)
        self.bench.tiers.clear()
        self.clean = set()

    def turn(self) -> None:
        self.bench.flows.run()
        while not self.bench._posted.empty():
            self.bench._turn()

    # --- What must be so in the end ---

    def come_to_rest(self) -> None:
        bench, tiers = self.bench, self.bench.tiers
        for adapter in self.adapters:
            adapter.calm = True
        bench.busy = False
        bench.run_until(lambda: all(request in bench.results for request in self.open))
        for request in list(self.open):
            self._end(request)
        bench.run_until(lambda: all(x.scanned or x.must_ask for x in tiers.backends))
        bench.run_until(self._idle)
        assert tiers.prefetches.active == 0

    def _idle(self) -> bool:
        tiers = self.bench.tiers
        self.bench.tick()
        busy = tiers.writes.objects or self.bench.l1.writing or not self.bench._posted.empty()
        busy = busy or any(
            backend.clearing or backend.leftovers.stuck for backend in tiers.backends
        )
        return not busy and not any(backend._calls for backend in tiers.backends)

    def check_accounts(self) -> None:
        bench, l1 = self.bench, self.bench.l1
        assert (l1.held, l1.writing, bench.leases.live, bench.leases.open) == (0, 0, 0, 0)
        assert (bench.tiers.writes.bytes, bench.tiers.writes.objects) == (0, 0)
        space = l1.space(SPACE)
        entries = list(space.ready.values()) if space is not None else []
        assert l1.objects == len(entries)
        assert l1.used_bytes == sum(entry.end - entry.start for entry in entries)
        for backend, adapter in zip(bench.tiers.backends, self.adapters, strict=True):
            assert bench.tiers.loads.in_flight(backend) == (0, 0)
            self._check_catalog(backend, adapter)

    def _check_catalog(self, backend: Backend, adapter: Rough) -> None:
        """It names what the backend has, but for what was lost behind its back."""
        catalog, tag = backend.catalog, backend.epoch.tag or ""
        known = {name._replace(epoch=tag): catalog.size(name) for name in catalog.names()}
        assert catalog.used_bytes == sum(known.values())
        spoiled = adapter.spoiled
        kept = {name: len(data) for name, data in adapter.records.items() if name not in spoiled}
        if not adapter.shared:
            assert {name.epoch for name in adapter.records} <= {tag}, (
                "left over"
            )  # else the catalog is but a hint
            assert not known.keys() - kept.keys() - spoiled, "known, and not there"
            assert not kept.keys() - known.keys(), "there, and never to be found or deleted"
        assert all(known[name] == size for name, size in kept.items() if name in known)

    def check_hits(self) -> None:
        """Whatever a backend has whole is a hit, however slow the machine is."""
        bench = self.bench
        bench.tiers.prefetches._timeout = 30.0
        bench.l1.clear(force=True)
        for number in range(NUMBERS):
            names = [
                ObjectName(space_name(SPACE), hash_of(number), backend.epoch.tag or "")
                for backend in bench.tiers.backends
            ]
            whole = any(
                name in adapter.records and name not in adapter.spoiled
                for name, adapter in zip(names, self.adapters, strict=True)
            )
            bench.run_until(lambda: all(x.reads.allows() for x in bench.tiers.backends))
            hits = bench.lookup(number)
            assert hits == 1 if whole else hits in (0, 1)
            bench.l1.clear(force=False)


@pytest.mark.parametrize("seed", range(WALKS))
def test_a_random_walk(seed: int) -> None:
    walk = Walk(seed)
    walk.run()
    walk.come_to_rest()
    walk.check_accounts()
    walk.check_hits()
    walk.bench.tiers.close()
