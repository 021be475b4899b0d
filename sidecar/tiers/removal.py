"""Removing objects from a backend: in the background, one batch at a time, until it is done.

A name is changed by one call at a time: what is stored under it while the old one is being
removed would be lost, or kept in the old one's stead.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sidecar.flow import Outcome
from sidecar.tiers.base import TierError
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.names import ObjectName

_DELETED_A_CALL = 256
Run = Callable[[Callable[[], Any], Callable[[Any, TierError | None], None]], None]


class Removal:
    """The doomed objects of one catalog, on their way out. Loop thread only.

    `epoch()` is the one that the catalog is of. `run(call, done)` runs a call that removes
    on a thread, if `allowed()`; `on_aside(name)` is told of a bad object that was kept for
    inspection.
    """

    def __init__(
        self, catalog: Catalog, epoch: Callable[[], Epoch], run: Run,
        allowed: Callable[[], bool], on_aside: Callable[[ObjectName], None],
    ) -> None:  # fmt: skip
        self._catalog = catalog
        self._epoch = epoch
        self._run = run
        self._allowed = allowed
        self._on_aside = on_aside
        self._waiting: deque[ObjectName] = deque()
        self._failed: list[ObjectName] = []
        self._busy = False
        self._changing: dict[ObjectName, list[Callable[[], None]]] = {}

    def begin_change(self, name: ObjectName) -> bool:
        """The caller changes what is under `name` now; False if somebody else does."""
        if name in self._changing:
            return False
        self._changing[name] = []
        return True

    def is_changing(self, name: ObjectName) -> bool:
        """Whether a call that changes what is under `name` is under way."""
        return name in self._changing

    def when_changed(self, name: ObjectName, callback: Callable[[], None]) -> None:
        """Call back when the change of `name` that is under way has ended."""
        self._changing[name].append(callback)

    async def wait_to_change(self, name: ObjectName) -> None:
        """Begin a change as soon as nobody else is at it."""
        while not self.begin_change(name):
            changed: Outcome[None] = Outcome()
            self.when_changed(name, partial(changed.set, None))
            await changed

    def end_change(self, name: ObjectName) -> None:
        for callback in self._changing.pop(name):
            callback()

    def add(self, names: Iterable[ObjectName]) -> None:
        """These have been doomed."""
        self._waiting.extend(names)
        self.pump()

    def retry(self) -> None:
        """Try again what could not be removed."""
        failed, self._failed = self._failed, []
        self.add(failed)

    def pump(self) -> None:
        """Begin to remove what waits for it."""
        while self._waiting and not self._busy and self._allowed():
            batch, epoch = self._next_batch(), self._epoch()
            if batch:
                self._busy = True
                self._run(partial(_remove, epoch, batch), partial(self._removed, epoch, batch))

    def _next_batch(self) -> list[tuple[ObjectName, str | None]]:
        """Names to remove now: some good ones together, or a bad one alone."""
        batch: list[tuple[ObjectName, str | None]] = []
        while self._waiting and len(batch) < _DELETED_A_CALL:
            name = self._waiting[0]
            doomed = self._catalog.doomed.get(name)
            if doomed is not None and doomed.reason is not None and batch:
                break
            self._waiting.popleft()
            if doomed is None:
                continue  # stored anew
            if not self.begin_change(name):
                self.when_changed(name, partial(self.add, [name]))
                continue
            batch.append((name, doomed.reason))
            if doomed.reason is not None:
                break
        return batch

    def _removed(
        self, epoch: Epoch, batch: Sequence[tuple[ObjectName, str | None]], kept: bool,
        error: TierError | None,
    ) -> None:  # fmt: skip
        self._busy = False
        # After a clear the names are those of other records, which are not to be forgotten.
        is_current = epoch is self._epoch()
        for name, _ in batch:
            if is_current and error is None:
                self._catalog.remove(name)
            elif is_current and self._catalog.stuck(name):
                self._failed.append(name)
            self.end_change(name)
        if kept:
            self._on_aside(batch[0][0])
        self.pump()


def _remove(epoch: Epoch, batch: Sequence[tuple[ObjectName, str | None]]) -> bool:
    """On a thread. Whether it was kept for inspection."""
    name, reason = batch[0]
    if reason is not None:
        return epoch.set_aside(name, reason)
    epoch.delete([name for name, _ in batch])
    return False
