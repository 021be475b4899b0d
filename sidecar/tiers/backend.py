"""One adapter with all that the server keeps of it: catalog, threads, breakers, epoch.

Reads, writes and removals have threads and a breaker each: a full or read-only disk still
serves, a load is never behind a store, and a backend that refuses to delete still stores. All
methods belong to the loop thread.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from sidecar.cache.changes import Changes
from sidecar.flow import Outcome
from sidecar.telemetry import Telemetry
from sidecar.tiers.base import Adapter, Corrupt, Found, Missing, Relocated, TierError
from sidecar.tiers.calls import Calls, Post, Side
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.epochs import Epoch, Marks, Replaced
from sidecar.tiers.leftovers import Leftovers
from sidecar.tiers.marking import Marking
from sidecar.tiers.names import ObjectName
from sidecar.tiers.removal import Removal
from sidecar.tiers.scanning import Scanner
from sidecar.tiers.settings import AdapterSettings
from sidecar.tiers.threads import Threads

log = logging.getLogger(__name__)
T = TypeVar("T")
_SCAN_AGAIN_SECONDS = 30.0
_EVICTED_A_TICK = 1000


class Backend:
    """`label` names the adapter in metrics; `index` is its place in the cascade."""

    def __init__(
        self, index: int, label: str, settings: AdapterSettings, adapter: Adapter, post: Post,
        telemetry: Telemetry, changes: Changes,
    ) -> None:  # fmt: skip
        self.index, self.label = index, label
        self.settings = settings
        self.adapter = adapter
        self.telemetry = telemetry
        self.catalog = Catalog(settings.capacity_bytes, settings.eviction, changes)
        self._marks = Marks(adapter, label)
        self.epoch = Epoch(self._marks)  # what is asked of it is not older than a clear
        self.scanned = False
        self.on_scanned: Callable[[], None] = lambda: None
        self.on_replaced: Callable[[], None] = lambda: None  # others have cleared the backend
        self.on_relocated: Callable[[], None] = lambda: None  # it is another one
        self.on_kept: Callable[[ObjectName], None] = lambda name: None  # something was stored
        self.busy: Callable[[], set[ObjectName]] = set  # what may not be evicted now
        readers, writers = settings.num_workers, max(1, settings.num_workers // 2)
        self._calls = Calls(label, settings.timeout_seconds, telemetry, self._adopt)
        self._reading = Side("load", Threads(f"l2-{label}-read", readers, post), awaited=True)
        self._writing = Side("store", Threads(f"l2-{label}-write", writers, post))
        self._removing = Side("delete", Threads(f"l2-{label}-delete", 1, post))
        marks = Side("mark", Threads(f"l2-{label}-mark", 1, post), awaited=True)
        self.marking = Marking(label, self._calls, marks, lambda: self.epoch)
        self._sides = (self._reading, self._writing, self._removing, marks)
        self.reads, self.writes = self._reading.breaker, self._writing.breaker
        self.deletes = self._removing.breaker
        self.removal = Removal(
            self.catalog, lambda: self.epoch, self._remove, self.deletes.allows,
            self._put_aside,
        )  # fmt: skip
        self.leftovers = Leftovers(adapter, self._remove, self.deletes.allows, self._count_stuck)
        self._scanner = Scanner(label, adapter, post, self._found, self._order, self._scan_ended)
        self._next_scan = 0.0

    @property
    def read_slots(self) -> int:
        """How many reads keep all threads busy, with one more each in wait."""
        return 2 * self._reading.threads.size

    @property
    def write_slots(self) -> int:
        return self._writing.threads.size + 1

    @property
    def must_ask(self) -> bool:
        """Whether what the catalog does not name may be there all the same."""
        return self.adapter.shared or not self.scanned

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
        self._calls.run(self._reading, call, done, on_late)

    def write(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        """The same for a call that writes."""
        self._calls.run(self._writing, call, done)

    def reading(
        self, call: Callable[[], T], on_late: Callable[[], None] = lambda: None
    ) -> Outcome[T]:
        """A call that reads, for flows: what it returns, or the TierError that it raises."""
        return _outcome(lambda done: self.read(call, done, on_late))

    def writing(self, call: Callable[[], T]) -> Outcome[T]:
        """The same for a call that writes."""
        return _outcome(lambda done: self.write(call, done))

    def find(self, names: Sequence[ObjectName], done: Callable[[], None]) -> None:
        """Ask the backend for `names`; what it has is in the catalog when `done` is called."""
        epoch = self.epoch

        def found(sizes: list[int | None], error: TierError | None) -> None:
            if error is None and epoch is self.epoch:
                for name, size in zip(names, sizes, strict=True):
                    if size is not None and not self.catalog.is_leaving(name):
                        self.catalog.add(name, size)
            done()

        self.read(partial(epoch.find, names), found)

    def evict(self, names: Sequence[ObjectName]) -> None:
        """The catalog has doomed these for want of room."""
        self.telemetry.l2_evicted_objects_chunks.add(len(names), self.label)
        self.removal.add(names)

    def delete(self, names: Iterable[ObjectName]) -> None:
        """Remove these, known or not."""
        names = list(names)
        for name in names:
            self.catalog.doom(name)
        self.removal.add(names)

    def condemn(self, name: ObjectName, reason: str) -> None:
        """A bad object: it is never looked at again, and put aside if that can be."""
        self.telemetry.l2_corrupt_objects.add(1, self.label, reason)
        log.warning("L2 %s: %s failed verification (%s)", self.label, name.path, reason)
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
        """Begin a new epoch: nothing that was stored before now is found any more.

        It holds for others, and after a restart, once `marking.unmarked` is empty. What is left
        over is removed in the background, as far as the backend knows or lists it.
        """
        self.leftovers.deleted = 0
        self._begin(Epoch(self._marks, self.epoch.next_tag()))
        self.marking.publish()
        if self.must_ask:
            self.start_scan(time.monotonic())

    @property
    def clearing(self) -> bool:
        """Whether something of the last clear is still under way."""
        return self.marking.publishing or self._scanner.running or bool(self.leftovers.waiting)

    def leave(self, epoch: Epoch, name: ObjectName, size: int) -> None:
        """This was stored in an epoch that is over."""
        if epoch.tag is not None:
            self.leftovers.add(epoch.tag, {name: size})

    def tick(self, now: float) -> None:
        """Once a second: look for what is overdue, and for what is to be tried again."""
        self._calls.tick(now)
        if self.deletes.allows():
            self.removal.retry()
            self.leftovers.retry()
        self.marking.tick(now)
        self._keep_quotas()
        if not (self.scanned or self.adapter.shared) and now >= self._next_scan:
            self.start_scan(now)

    def start_scan(self, now: float) -> None:
        """Find out in the background what is there, and what is left over."""
        self._next_scan = now + _SCAN_AGAIN_SECONDS
        self._scanner.start(self.epoch)

    def stop(self) -> None:
        """End the threads after what is queued; `stopped` tells when they have."""
        for side in self._sides:
            side.threads.stop()
        self.marking.stop()

    def stopped(self) -> bool:
        """Whether no thread uses the arena, or the adapter, any more."""
        return not (self._scanner.alive() or any(side.threads.alive() for side in self._sides))

    def _keep_quotas(self) -> None:
        """Of those whose quota was lowered; the others' are kept when they store."""
        if self.catalog.tenants is not None:
            for salt in list(self.catalog.tenants.quotas.exceeded()):
                self.evict(self.catalog.keep_quota(salt, 0, self.busy(), _EVICTED_A_TICK))

    def _put_aside(self, name: ObjectName) -> None:
        self.telemetry.l2_quarantined_objects.add(1, self.label)

    def _begin(self, epoch: Epoch, cleared: bool = True) -> None:
        """From now on `epoch` counts, of which nothing is known. What is of the one before is left
        over if it was `cleared`; else it may count again.
        """
        over, self.epoch = self.epoch, epoch
        over.end()
        swept = self.catalog.sweep()
        if cleared and over.tag is not None:
            self.leftovers.add(over.tag, swept)

    def _adopt(self, error: Replaced | Relocated) -> None:
        """Others have cleared the backend, or it is another one: what is there is found here."""
        if isinstance(error, Relocated):
            self._relocate(error)
        elif error.epoch is self.epoch:
            if error.cleared:
                log.warning("L2 %s: another sidecar has cleared it", self.label)
            else:
                log.warning("L2 %s: its epoch mark is another one, or lost", self.label)
            self._begin(Epoch(self._marks), error.cleared)
            self.marking.unmarked = ""  # theirs is the later one
            self.scanned = False
            self.on_replaced()

    def _relocate(self, error: Relocated) -> None:
        log.warning("L2 %s: %s: what is there now is used", self.label, error)
        self._marks = self._marks.elsewhere()
        # A clear that has not reached the old one holds in this one.
        tag = self.epoch.next_tag() if self.marking.unmarked else None
        self._begin(Epoch(self._marks, tag), cleared=False)
        self.leftovers.forget()
        self.scanned = False
        self.on_relocated()
        if self.marking.unmarked:
            self.marking.publish()
        self.start_scan(time.monotonic())

    def _remove(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        self._calls.run(self._removing, call, done)

    def _count_stuck(self, size: int) -> None:
        self.catalog.left_over = size

    def _found(self, batch: list[Found]) -> None:
        tag, shared = self.epoch.tag, self.adapter.shared
        if tag is None:
            return  # it has begun meanwhile: there is another scan for it
        if not shared:
            self.catalog.recover(
                found._replace(name=found.name.in_epoch(""))
                for found in batch
                if found.name.epoch == tag
            )
        over = [found for found in batch if found.name.epoch != tag]
        # Others may have begun newer ones.
        self.leftovers.add(
            None, {name: size for name, size, _ in over if not shared or name.epoch < tag}
        )

    def _order(self, names: list[ObjectName]) -> None:
        tag = self.epoch.tag
        self.catalog.order_recovered(name.in_epoch("") for name in names if name.epoch == tag)

    def _scan_ended(self, epoch: Epoch, error: TierError | None) -> None:
        if isinstance(error, Replaced | Relocated):
            self._adopt(error)
        if epoch is not self.epoch:
            self.start_scan(time.monotonic())
            return
        if error is not None:
            self._scan_failed(error)
            return
        if self.adapter.shared:
            return
        self.scanned = True
        # A crash may have come between a store and the removal of what it took the place of.
        self.evict(self.catalog.make_room(0, self.busy()))
        count, size = len(self.catalog), self.catalog.used_bytes / 2**30
        log.info("L2 %s: %d objects, %.2f GiB", self.label, count, size)
        self.on_scanned()

    def _scan_failed(self, error: TierError) -> None:
        if self.adapter.shared:
            log.warning("L2 %s: old objects cannot be removed after a clear: %s", self.label, error)
        else:
            self._calls.failed(self._reading, error)


def _outcome(run: Callable[[Callable[[T, TierError | None], None]], None]) -> Outcome[T]:
    """The outcome of a call that is begun by `run(done)`."""
    outcome: Outcome[T] = Outcome()

    def done(result: T, error: TierError | None) -> None:
        if error is None:
            outcome.set(result)
        else:
            outcome.fail(error)

    run(done)
    return outcome
