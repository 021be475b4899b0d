"""One adapter with all that the server keeps of it: catalog, threads, breakers.

Reads and writes have threads and a breaker each: a full or read-only disk still serves, and a
load is never behind a store. All methods belong to the loop thread.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sidecar.telemetry import Telemetry
from sidecar.tiers.base import Adapter, Corrupt, Found, Missing, NoSpace, TierError
from sidecar.tiers.breaker import Breaker
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import ObjectName
from sidecar.tiers.settings import AdapterSettings
from sidecar.tiers.workers import Workers

log = logging.getLogger(__name__)
T = TypeVar("T")
Post = Callable[[Callable[[], None]], None]
_SCAN_AGAIN_SECONDS = 30.0
_ORDERED_A_TURN = 512
_DELETED_A_CALL = 256


class _Call:
    """A call that was handed to a thread: when it began there, whether it is overdue."""

    __slots__ = ("began", "breaker", "late")

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.began: float | None = None
        self.late = False


class Lane:
    """`label` names the adapter in metrics; `index` is its place in the cascade."""

    def __init__(
        self, index: int, label: str, settings: AdapterSettings, adapter: Adapter, post: Post,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self.index, self.label = index, label
        self.settings = settings
        self.adapter = adapter
        self.telemetry = telemetry
        self.catalog = Catalog(settings.capacity_bytes, settings.eviction)
        self.reads, self.writes = Breaker(time.monotonic), Breaker(time.monotonic)
        self.scanned = False
        self.epoch = 0  # counts how often everything was cleared
        self._post = post
        self._readers = Workers(f"l2-{label}-read", settings.num_workers, post)
        self._writers = Workers(f"l2-{label}-write", max(1, settings.num_workers // 2), post)
        self._calls: set[_Call] = set()
        self._scanner: Workers | None = None
        self._scanning = False
        self._next_scan = 0.0

    @property
    def read_slots(self) -> int:
        """How many reads keep all threads busy, with one more each in wait."""
        return 2 * self._readers.size

    @property
    def write_slots(self) -> int:
        return self._writers.size + 1

    @property
    def must_ask(self) -> bool:
        """Whether what the catalog does not name may be there all the same."""
        return self.adapter.shared or not self.scanned

    @property
    def counted(self) -> bool:
        """Whether it is known how full it is: no capacity is kept by guessing."""
        return self.scanned or self.settings.capacity_bytes is None

    def read(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        """Run a call that reads on a thread, then `done(result, error)` here."""
        self._run(self._readers, self.reads, "load", call, done)

    def write(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        """The same for a call that writes."""
        self._run(self._writers, self.writes, "store", call, done)

    def find(self, names: Sequence[ObjectName], done: Callable[[], None]) -> None:
        """Ask the backend for `names`; what it has is in the catalog when `done` is called."""

        def found(sizes: list[int | None], error: TierError | None) -> None:
            if error is None:
                for name, size in zip(names, sizes, strict=True):
                    if size is not None:
                        self.catalog.add(name, size)
            done()

        self.read(partial(self.adapter.find, names), found)

    def delete(self, names: Sequence[ObjectName]) -> None:
        """Remove objects that the catalog has given up already."""
        for at in range(0, len(names), _DELETED_A_CALL):
            some = names[at : at + _DELETED_A_CALL]
            self.write(partial(self.adapter.delete, some), lambda _, error: None)

    def condemn(self, name: ObjectName, reason: str) -> None:
        """A bad object: it is never looked at again, and put aside if that can be."""
        self.catalog.remove(name)
        self.telemetry.l2_corrupt_objects.add(1, self.label, reason)
        log.warning("L2 %s: %s is not what it should be (%s)", self.label, name.path, reason)

        def aside(kept: bool, error: TierError | None) -> None:
            if kept:
                self.telemetry.l2_quarantined_objects.add(1, self.label)

        self.write(partial(self.adapter.set_aside, name, reason), aside)

    def clear(self) -> None:
        """Remove everything, and what a scan or a store still brings from before now."""
        names = self.catalog.names()
        self.catalog.clear()
        self.epoch += 1
        self.delete(names)

    def tick(self, now: float) -> None:
        """Once a second: look for calls that are overdue, and for a scan that is due."""
        for call in self._calls:
            overdue = call.began is not None and now - call.began > self.settings.timeout_seconds
            if overdue and not call.late:
                call.late = True
                self.telemetry.l2_timeouts.add(1, self.label)
                self._failed(call.breaker, TierError("timeout"))
        if not (self.scanned or self.adapter.shared or self._scanning) and now >= self._next_scan:
            self.start_scan(now)

    def start_scan(self, now: float) -> None:
        """Find out in the background what is there."""
        self._scanning = True
        self._next_scan = now + _SCAN_AGAIN_SECONDS
        self._scanner = Workers(f"l2-{self.label}-scan", 1, self._post)
        self._scanner.submit(partial(self._scan, self.epoch), self._scan_ended)
        self._scanner.stop()

    def stop(self) -> None:
        """End the threads after what is queued; `wait_stopped` tells when they have."""
        self._readers.stop()
        self._writers.stop()

    def stopped(self) -> bool:
        """Whether no thread uses the arena, or the adapter, any more."""
        scanning = self._scanner is not None and self._scanner.alive()
        return not (scanning or self._readers.alive() or self._writers.alive())

    def _scan(self, epoch: int) -> None:
        newest_first: list[tuple[float, ObjectName]] = []
        for batch in self.adapter.scan():
            self._post(partial(self._recover, epoch, batch))
            newest_first += [(found.used_at, found.name) for found in batch]
        newest_first.sort(key=lambda item: item[0], reverse=True)
        for at in range(0, len(newest_first), _ORDERED_A_TURN):
            names = [name for _, name in newest_first[at : at + _ORDERED_A_TURN]]
            self._post(partial(self.catalog.order_recovered, names))

    def _recover(self, epoch: int, batch: list[Found]) -> None:
        if epoch == self.epoch:
            self.catalog.recover(batch)
        else:  # from before a clear
            self.delete([found.name for found in batch if found.name not in self.catalog])

    def _scan_ended(self, _: None, error: TierError | None) -> None:
        self._scanning = False
        if error is not None:
            self._failed(self.reads, error)
            return
        self.scanned = True
        count, size = len(self.catalog), self.catalog.used_bytes / 2**30
        log.info("L2 %s: %d objects, %.2f GiB", self.label, count, size)

    def _run(
        self, workers: Workers, breaker: Breaker, kind: str, work: Callable[[], T],
        done: Callable[[T, TierError | None], None],
    ) -> None:  # fmt: skip
        call = _Call(breaker)

        def timed() -> T:
            call.began = time.monotonic()
            return work()

        def ended(result: T, error: TierError | None) -> None:
            self._calls.discard(call)
            self._judge(call, kind, error)
            done(result, error)

        self._calls.add(call)
        breaker.begin()
        workers.submit(timed, ended)

    def _judge(self, call: _Call, kind: str, error: TierError | None) -> None:
        """What the outcome of a call says about the backend."""
        if error is not None and not isinstance(error, Missing | Corrupt):
            self.telemetry.l2_errors.add(1, self.label, kind, error.cause)
        if call.late:
            return  # it was judged when it became overdue
        if error is None or isinstance(error, Missing | Corrupt | NoSpace):
            call.breaker.succeeded()
        else:
            self._failed(call.breaker, error)

    def _failed(self, breaker: Breaker, error: TierError) -> None:
        if breaker.failed(str(error)):
            kind = "load" if breaker is self.reads else "store"
            log.warning("L2 %s is cut off for %ss: %s", self.label, kind, error)
            self.telemetry.l2_breaker_opened.add(1, self.label, kind)
