"""Lives of a server's L2 over one directory, each of them ended by SIGKILL.

Usage: python -m tests.faults.l2_victim DIRECTORY ROUNDS SEED CAPACITY SYNC. Every life is a
fork of this process, which has no threads. It checks all that the life before it has left,
stores more, and is killed at a point that the seed says. Prints what happened as JSON; exits 1
with a traceback if a life has found what must not be.

A journal beside the directory tells what the catalog has named when: "+n" for an object that is
kept, "-n" for one that was given up. Whatever it ends with a "+" for must be a hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sidecar.cache.entry import Entry
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.base import Bytes, Corrupt, Found
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import HEADER_BYTES, verify
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, hash_of

NUMBERS = 48
SLOTS = 16
RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES
RANDOM = "at random"
POINTS = [
    "opening", "scanning", "before the write", "in the write", "before the sync",
    "before the rename", "after the rename", "before a delete", "in a delete",
    "before the quarantine", "after the quarantine", RANDOM, RANDOM, RANDOM,
]  # fmt: skip
ONCE = ("opening", "scanning", "before the quarantine", "after the quarantine")  # a life passes it
BATCHES = 12


@lru_cache(NUMBERS)
def content(number: int) -> Bytes:
    """What the object of this number holds."""
    return np.random.default_rng(number).integers(0, 256, OBJECT_BYTES, np.uint8)


class Fate:
    """SIGKILL for this process when it passes `point` for the `countdown`-th time."""

    def __init__(self, point: str, countdown: int) -> None:
        self.point, self.countdown = point, countdown

    def passes(self, point: str) -> None:
        if point == self.point:
            self.countdown -= 1
            if self.countdown <= 0:
                self.strike()

    @staticmethod
    def strike() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives this")


class MortalIO(DirectIO):
    """Writes a page, meets its fate, and writes the rest."""

    def __init__(self, fate: Fate) -> None:
        self._fate = fate

    def write(self, fd: int, record: Bytes) -> None:
        super().write(fd, record[:4096])
        self._fate.passes("in the write")
        super().write(fd, record)


class MortalFiles(Files):
    """The `fs` adapter, with a fate between its steps."""

    def __init__(self, base: str, sync: Any, fate: Fate) -> None:
        super().__init__(base, MortalIO(fate), sync=sync)
        self._fate = fate

    def _open_io(self, arena: Bytes) -> None:
        self._fate.passes("opening")
        super()._open_io(arena)

    def _write_temp(self, temp: str, record: Bytes) -> None:
        self._fate.passes("before the write")
        super()._write_temp(temp, record)

    def _sync(self, fd: int) -> None:
        self._fate.passes("before the sync")
        super()._sync(fd)

    def _publish(self, temp: str, name: ObjectName) -> None:
        self._fate.passes("before the rename")
        super()._publish(temp, name)
        self._fate.passes("after the rename")

    def delete(self, names: Sequence[ObjectName]) -> None:
        self._fate.passes("before a delete")
        for name in names:
            super().delete([name])
            self._fate.passes("in a delete")

    def _scan_folder(self, where: tuple[str, str]) -> list[Found]:
        found = super()._scan_folder(where)
        self._fate.passes("scanning")
        return found

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        self._fate.passes("before the quarantine")
        kept = super().set_aside(name, reason)
        self._fate.passes("after the quarantine")
        return kept


class Journal:
    """What the catalog knows, on disk before anything else happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given_up: set[int] = set()  # in this life, for want of room
        path.touch()

    def expected(self) -> set[int]:
        known: set[int] = set()
        for line in self.path.read_text().splitlines():
            (known.add if line[0] == "+" else known.discard)(int(line[1:]))
        return known

    def note(self, sign: str, number: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{sign}{number}\n")

    def watch(self, catalog: Any) -> None:
        """Note what is added to a catalog and what is removed."""
        add, remove, doom = catalog.add, catalog.remove, catalog._doom

        def noted_add(name: ObjectName, size: int) -> None:
            add(name, size)
            self.note("+", int.from_bytes(name.hash))

        def noted_remove(name: ObjectName) -> bool:
            self.note("-", int.from_bytes(name.hash))
            known: bool = remove(name)
            return known

        def noted_doom(name: ObjectName, reason: str | None) -> bool:
            self.note("-", int.from_bytes(name.hash))
            if reason is None:
                self.given_up.add(int.from_bytes(name.hash))
            known: bool = doom(name, reason)
            return known

        catalog.add, catalog.remove, catalog._doom = noted_add, noted_remove, noted_doom


class Life:
    """One process from start to its end."""

    def __init__(self, base: Path, capacity: int, sync: str, fate: Fate, seed: int) -> None:
        self.base, self.capacity = base, capacity
        self.random = random.Random(seed)
        self.journal = Journal(base.with_suffix(".journal"))
        self.expected = self.journal.expected()
        settings = {"max_capacity_gb": capacity / 2**30, "num_workers": 4}
        self.bench = Bench(
            MortalFiles(str(base), sync, fate),
            slots=SLOTS,
            policy=replace(DEFAULTS, queue_ratio=1.0, timeout_seconds=120.0),
            settings=settings,
        )
        self.catalog = self.bench.tiers.backends[0].catalog
        self.journal.watch(self.catalog)
        assert not list((base / ".tmp").iterdir()), "a temporary file has survived the start"

    def start(self) -> None:
        if self.random.random() < 0.3:
            self.bench.tiers.start()  # the first lookups come while it is scanning
        else:
            self.bench.start()
            # What was too much for the capacity when it was killed goes first.
            self.bench.run_until(lambda: not self.catalog.leaving)
            self.check_usage()

    def check_usage(self) -> None:
        """The catalog counts what is on disk; for a bench that has come to rest."""
        sizes = [path.stat().st_size for path in self.base.glob("objects/*/*/*")]
        assert self.catalog.used_bytes == sum(sizes), (self.catalog.used_bytes, sizes)
        assert len(self.catalog) == len(sizes)

    def look_up(self, number: int) -> bool:
        """Whether it is a hit; if so its bytes are checked."""
        request = f"r{number}-{self.random.random()}"
        lookup = self.bench.begin(request, number)
        self.bench.run_until(lambda: request in self.bench.results)
        for (entry,) in lookup.objects[0]:
            data = self.bench.arena[entry.offset : entry.offset + entry.size]
            assert np.array_equal(data, content(number)), f"{number} is not what it was"
        self.bench.leases.end(lookup)
        return bool(self.bench.results[request])

    def verify(self, spoiled: set[int]) -> int:
        """Look everything up; the number of hits."""
        numbers = list(range(NUMBERS))
        self.random.shuffle(numbers)
        found = {number for number in numbers if self.look_up(number)}
        assert not found & spoiled, f"hits that were damaged: {found & spoiled}"
        lost = self.expected - spoiled - found - self.journal.given_up
        assert not lost, f"lost: {lost}"
        return len(found)

    def store(self, numbers: Iterable[int]) -> None:
        """New ones, and such that take the place of what is there."""
        entries: list[Entry] = []
        for number in numbers:
            space = self.bench.l1.space(SPACE)
            old = space.ready.get(hash_of(number)) if space is not None else None
            if old is not None:
                if not self.bench.l1.discard(old):
                    continue
                self.bench.tiers.superseded(SPACE, hash_of(number))
            if self.bench.l1.knows(SPACE, hash_of(number)):
                continue
            entry = self.bench.l1.reserve(SPACE, hash_of(number), OBJECT_BYTES)
            if entry is None:
                break
            self.bench.arena[entry.offset : entry.offset + entry.size] = content(number)
            entries.append(entry)
        for entry in reversed(entries):
            self.bench.l1.commit(entry)
        self.bench.tiers.stored(entries)

    def work(self) -> None:
        for _ in range(BATCHES):
            self.store(self.random.sample(range(NUMBERS), 5))
            if self.random.random() < 0.5:
                self.bench.settle()
            else:
                self.bench._turn()

    def end(self) -> None:
        self.bench.tiers.begin_stop()
        self.bench.settle()
        self.bench.run_until(lambda: not self.bench.tiers.backends[0]._calls)
        self.bench.tiers.close()


class Campaign:
    """All lives over one directory."""

    def __init__(self, base: Path, capacity: int, sync: str, seed: int) -> None:
        self.base, self.capacity, self.sync = base, capacity, sync
        self.random = random.Random(seed)
        self.spoiled: set[int] = set()
        self.killed: Counter[str] = Counter()
        self.outlived = 0

    def round(self, number: int) -> None:
        point = POINTS[number % len(POINTS)]
        if "quarantine" in point or self.random.random() < 0.1:
            self.spoil()
        countdown = 1 if point in ONCE else self.random.randint(1, 6)
        life = self.fork(lambda: self.live(point, countdown, number))
        if point == RANDOM:
            time.sleep(self.random.random() * 0.12)
            os.kill(life, signal.SIGKILL)
        self.reap(life, point)

    def live(self, point: str, countdown: int, seed: int) -> None:
        life = Life(self.base, self.capacity, self.sync, Fate(point, countdown), seed)
        life.start()
        life.verify(self.spoiled)
        life.work()
        life.end()

    def spoil(self) -> None:
        """Damage a file that is there."""
        files = sorted(self.base.glob("objects/*/*/*.kv"))
        if not files:
            return
        victim = self.random.choice(files)
        data = bytearray(victim.read_bytes())
        # The header or the object: what lies between is padding.
        places = range(100) if self.random.random() < 0.5 else range(HEADER_BYTES, len(data))
        data[self.random.choice(places)] ^= 1 << self.random.randrange(8)
        victim.write_bytes(data)
        self.spoiled.add(int(victim.stem, 16))

    def fork(self, run: Callable[[], None]) -> int:
        child = os.fork()
        if child:
            return child
        try:
            run()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    def reap(self, life: int, point: str) -> None:
        _, status = os.waitpid(life, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"{point}: signal {os.WTERMSIG(status)}"
            self.killed[point] += 1
        else:
            assert os.WEXITSTATUS(status) == 0, f"a life that was to end {point!r} has failed"
            self.outlived += 1
        # Stored anew, or put aside: whatever there is now was seen by nobody but the last life.
        self.spoiled = {n for n in self.spoiled if self._is_spoiled(n)}

    def _is_spoiled(self, number: int) -> bool:
        """By its bytes: its name alone does not tell whether it has been replaced."""
        digits = hash_of(number).hex()
        for file in self.base.glob(f"objects/*/{digits[:2]}/{digits}.kv"):
            try:
                record = np.frombuffer(file.read_bytes(), np.uint8)
                verify(record, SPACE, hash_of(number), OBJECT_BYTES)
            except Corrupt:
                return True
        return False

    def finish(self) -> None:
        """A last life without a fate: everything can be stored, found and counted."""

        def live() -> None:
            life = Life(self.base, self.capacity, self.sync, Fate("never", 1), 0)
            life.bench.start()
            life.bench.run_until(lambda: not life.catalog.leaving)
            life.check_usage()
            life.verify(self.spoiled)
            if not self.capacity:
                for number in range(NUMBERS):
                    life.store([number])
                    life.bench.settle()
                assert all(life.look_up(number) for number in range(NUMBERS))
            else:
                life.work()
                life.bench.settle()
            life.bench.run_until(lambda: not life.bench.tiers.backends[0]._calls)
            life.check_usage()
            assert not self.capacity or life.catalog.used_bytes <= self.capacity
            life.end()
            assert life.bench.leases.live == life.bench.l1.held == life.bench.l1.writing == 0
            assert not list((self.base / ".tmp").iterdir())
            assert len(list((self.base / "quarantine").iterdir())) <= 16

        self.reap(self.fork(live), "never")


def main() -> None:
    directory, rounds, seed, capacity, sync = sys.argv[1:]
    campaign = Campaign(Path(directory), int(capacity) * RECORD_BYTES, sync, int(seed))
    for number in range(int(rounds)):
        campaign.round(number)
    campaign.finish()
    print(json.dumps({"killed": campaign.killed, "outlived": campaign.outlived}))


if __name__ == "__main__":
    main()
