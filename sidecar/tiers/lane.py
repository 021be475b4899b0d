"""One adapter with all that the server keeps of it: catalog, threads, breakers.

Reads and writes have threads and a breaker each: a full or read-only disk still serves, and a
load is never behind a store. All methods belong to the loop thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

from sidecar.telemetry import Telemetry
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.base import Adapter, Corrupt, Found, Missing, NoSpace, TierError
from sidecar.tiers.breaker import Breaker
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import ObjectName
from sidecar.tiers.removal import Removal
from sidecar.tiers.settings import AdapterSettings
from sidecar.tiers.workers import Workers

log = logging.getLogger(__name__)
T = TypeVar("T")
Post = Callable[[Callable[[], None]], None]
_SCAN_AGAIN_SECONDS = 30.0
_ORDERED_A_TURN = 512


class _Side:
    """The threads and the breaker of one direction, `load` or `store`."""

    def __init__(self, kind: str, workers: Workers) -> None:
        self.kind = kind
        self.workers = workers
        self.breaker = Breaker(time.monotonic)


class _Call:
    """A call that waits for a thread, or was taken by one: when it began there, whether it is
    overdue. `give_up` ends it if no thread has taken it.
    """

    __slots__ = ("asked", "began", "give_up", "late", "on_late", "side", "taken")

    def __init__(self, side: _Side, on_late: Callable[[], None]) -> None:
        self.side = side
        self.on_late = on_late
        self.give_up: Callable[[], None] = lambda: None
        self.taken = threading.Lock()  # by the thread, or by who gives it up; never released
        self.asked = time.monotonic()
        self.began: float | None = None
        self.late = False


class Lane:
    """`label` names the adapter in metrics; `index` is its place in the cascade.

    `files` is the adapter if GPUs may read and write its files themselves.
    """

    def __init__(
        self, index: int, label: str, settings: AdapterSettings, adapter: Adapter, post: Post,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self.index, self.label = index, label
        self.settings = settings
        self.adapter = adapter
        self.files = adapter if settings.gpu_mover and isinstance(adapter, Files) else None
        self.telemetry = telemetry
        self.catalog = Catalog(settings.capacity_bytes, settings.eviction)
        self.removal = Removal(self.catalog, adapter, self.write, self._put_aside)
        self.scanned = False
        self.epoch = 0  # counts how often everything was cleared
        self.on_scanned: Callable[[], None] = lambda: None
        self.busy: Callable[[], set[ObjectName]] = set  # what may not be evicted now
        self._post = post
        readers, writers = settings.num_workers, max(1, settings.num_workers // 2)
        self._reading = _Side("load", Workers(f"l2-{label}-read", readers, post))
        self._writing = _Side("store", Workers(f"l2-{label}-write", writers, post))
        self.reads, self.writes = self._reading.breaker, self._writing.breaker
        self._calls: set[_Call] = set()
        self._scanner: Workers | None = None
        self._scanning = False
        self._next_scan = 0.0

    @property
    def read_slots(self) -> int:
        """How many reads keep all threads busy, with one more each in wait."""
        return 2 * self._reading.workers.size

    @property
    def write_slots(self) -> int:
        return self._writing.workers.size + 1

    @property
    def must_ask(self) -> bool:
        """Whether what the catalog does not name may be there all the same.

        What was there before everything was cleared is on its way out, whoever finds it.
        """
        return self.adapter.shared or not (self.scanned or self.epoch)

    @property
    def counted(self) -> bool:
        """Whether it is known how full it is: no capacity is kept by guessing."""
        return self.scanned or self.settings.capacity_bytes is None

    def read(
        self, call: Callable[[], T], done: Callable[[T, TierError | None], None],
        on_late: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Run a call that reads on a thread, then `done(result, error)` here.

        `on_late` is called if it is overdue, before it has ended.
        """
        self._run(self._reading, call, done, on_late)

    def write(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        """The same for a call that writes."""
        self._run(self._writing, call, done, lambda: None)

    def find(self, names: Sequence[ObjectName], done: Callable[[], None]) -> None:
        """Ask the backend for `names`; what it has is in the catalog when `done` is called."""
        epoch = self.epoch

        def found(sizes: list[int | None], error: TierError | None) -> None:
            if error is None and epoch == self.epoch:
                for name, size in zip(names, sizes, strict=True):
                    if size is not None and not self.catalog.is_leaving(name):
                        self.catalog.add(name, size)
            done()

        self.read(partial(self.adapter.find, names), found)

    def evict(self, names: Sequence[ObjectName]) -> None:
        """The catalog has doomed these for want of room."""
        self.telemetry.l2_evicted_objects_chunks.add(len(names), self.label)
        self.removal.add(names)

    def delete(self, names: Iterable[ObjectName]) -> int:
        """Remove these, known or not; how many were known."""
        names = list(names)
        known = sum(self.catalog.doom(name) for name in names)
        self.removal.add(names)
        return known

    def condemn(self, name: ObjectName, reason: str) -> None:
        """A bad object: it is never looked at again, and put aside if that can be."""
        self.telemetry.l2_corrupt_objects.add(1, self.label, reason)
        log.warning("L2 %s: %s is not what it should be (%s)", self.label, name.path, reason)
        self.catalog.doom(name, reason)
        self.removal.add([name])

    def lost(self, name: ObjectName, error: TierError) -> None:
        """An object could not be read."""
        if isinstance(error, Missing):
            self.catalog.remove(name)
        elif isinstance(error, Corrupt):
            self.condemn(name, error.cause)
        else:
            self.catalog.distrust(name)

    def clear(self) -> None:
        """Remove everything, and what a scan or a store still brings from before now."""
        self.epoch += 1
        self.catalog.sweep()
        self.removal.pump()

    def tick(self, now: float) -> None:
        """Once a second: look for what is overdue, and for what is to be tried again."""
        for call in list(self._calls):
            since = call.asked if call.began is None else call.began
            if now - since > self.settings.timeout_seconds and not call.late:
                self._overdue(call)
        if self.writes.allows():
            self.removal.retry()
        if not (self.scanned or self.adapter.shared or self._scanning) and now >= self._next_scan:
            self.start_scan(now)

    def start_scan(self, now: float) -> None:
        """Find out in the background what is there."""
        self._scanning = True
        self._next_scan = now + _SCAN_AGAIN_SECONDS
        self._scanner = Workers(f"l2-{self.label}-scan", 1, self._post)
        self._scanner.submit(self._scan, self._scan_ended)
        self._scanner.stop()

    def stop(self) -> None:
        """End the threads after what is queued; `stopped` tells when they have."""
        self._reading.workers.stop()
        self._writing.workers.stop()

    def stopped(self) -> bool:
        """Whether no thread uses the arena, or the adapter, any more."""
        pools = [self._reading.workers, self._writing.workers, self._scanner]
        return not any(pool is not None and pool.alive() for pool in pools)

    def _put_aside(self, name: ObjectName) -> None:
        self.telemetry.l2_quarantined_objects.add(1, self.label)

    def _scan(self) -> None:
        newest_first: list[tuple[float, ObjectName]] = []
        for batch in self.adapter.scan():
            self._post(partial(self._recover, batch))
            newest_first += [(found.used_at, found.name) for found in batch]
        newest_first.sort(key=lambda item: item[0], reverse=True)
        for at in range(0, len(newest_first), _ORDERED_A_TURN):
            names = [name for _, name in newest_first[at : at + _ORDERED_A_TURN]]
            self._post(partial(self.catalog.order_recovered, names))

    def _recover(self, batch: list[Found]) -> None:
        if self.epoch:  # it is from before a clear, or known
            self.delete(found.name for found in batch if found.name not in self.catalog)
        else:
            self.catalog.recover(batch)

    def _scan_ended(self, _: None, error: TierError | None) -> None:
        self._scanning = False
        if error is not None:
            self._failed(self._reading, error)
            return
        self.scanned = True
        # A crash may have come between a store and the removal of what it took the place of.
        self.evict(self.catalog.make_room(0, self.busy()))
        count, size = len(self.catalog), self.catalog.used_bytes / 2**30
        log.info("L2 %s: %d objects, %.2f GiB", self.label, count, size)
        self.on_scanned()

    def _run(
        self, side: _Side, work: Callable[[], T], done: Callable[[T, TierError | None], None],
        on_late: Callable[[], None],
    ) -> None:  # fmt: skip
        call = _Call(side, on_late)

        def timed() -> T | None:
            if not call.taken.acquire(blocking=False):
                return None
            call.began = time.monotonic()
            return work()

        def ended(result: T | None, error: TierError | None) -> None:
            if call in self._calls:
                self._calls.discard(call)
                self._judge(call, error)
                done(cast(T, result), error)

        call.give_up = lambda: ended(None, TierError("no_thread", "all threads are stuck"))
        self._calls.add(call)
        side.breaker.begin()
        side.workers.submit(timed, ended)

    def _judge(self, call: _Call, error: TierError | None) -> None:
        """What the outcome of a call says about the backend."""
        if error is not None and not isinstance(error, Missing | Corrupt):
            self.telemetry.l2_errors.add(1, self.label, call.side.kind, error.cause)
        if call.late:
            return  # it was judged when it became overdue
        if error is None or isinstance(error, Missing | Corrupt | NoSpace):
            call.side.breaker.succeeded()
        else:
            self._failed(call.side, error)

    def _overdue(self, call: _Call) -> None:
        if call.began is None:
            # It waits for its turn; not for threads that may be stuck for ever.
            if self._is_stuck(call.side) and call.taken.acquire(blocking=False):
                call.give_up()
            return
        call.late = True
        self.telemetry.l2_timeouts.add(1, self.label)
        # With no thread left there will be no third failure.
        self._failed(call.side, TierError("timeout"), hopeless=self._is_stuck(call.side))
        call.on_late()

    def _is_stuck(self, side: _Side) -> bool:
        """Whether all threads are in calls that are overdue."""
        return sum(call.late for call in self._calls if call.side is side) >= side.workers.size

    def _failed(self, side: _Side, error: TierError, hopeless: bool = False) -> None:
        if side.breaker.failed(str(error), hopeless):
            log.warning("L2 %s is cut off for %ss: %s", self.label, side.kind, error)
            self.telemetry.l2_breaker_opened.add(1, self.label, side.kind)
