"""The calls to one adapter: on which threads, for how long, and what their outcomes say of it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from sidecar.telemetry import Telemetry
from sidecar.tiers.base import Corrupt, Missing, NoSpace, Relocated, TierError
from sidecar.tiers.breaker import Breaker
from sidecar.tiers.epochs import Replaced
from sidecar.tiers.threads import Threads

log = logging.getLogger(__name__)
T = TypeVar("T")
_NOT_ITS_FAULT = Missing | Corrupt | NoSpace | Replaced | Relocated
Post = Callable[[Callable[[], None]], None]


class Side:
    """The threads and the breaker of one kind of calls: `load`, `store`, `delete` or `mark`.

    `awaited`: somebody waits for the outcomes, and not for a thread that may never be free.
    """

    def __init__(self, kind: str, threads: Threads, awaited: bool = False) -> None:
        self.kind = kind
        self.threads = threads
        self.awaited = awaited
        self.breaker = Breaker(time.monotonic)


class _Call:
    """A call that waits for a thread, or was taken by one: when it began there, whether it is
    overdue. `give_up` ends it if no thread has taken it.
    """

    __slots__ = ("asked", "began", "give_up", "is_probe", "late", "on_late", "side", "taken")

    def __init__(self, side: Side, on_late: Callable[[], None]) -> None:
        self.side = side
        self.on_late = on_late
        self.give_up: Callable[[], None] = lambda: None
        self.is_probe = side.breaker.state == "half-open"
        self.taken = threading.Lock()  # by the thread, or by who gives it up; never released
        self.asked = time.monotonic()
        self.began: float | None = None
        self.late = False


class Calls:
    """Those under way. `timeout` is in seconds. Loop thread only.

    `on_changed` is told of a call's error that says that the backend is not what it was.
    """

    def __init__(
        self, label: str, timeout: float, telemetry: Telemetry,
        on_changed: Callable[[Replaced | Relocated], None],
    ) -> None:  # fmt: skip
        self._label = label
        self._timeout = timeout
        self._telemetry = telemetry
        self._on_changed = on_changed
        self._under_way: dict[_Call, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._under_way)

    def run(
        self, side: Side, work: Callable[[], T], done: Callable[[T, TierError | None], None],
        on_late: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Run `work` on a thread, then `done(result, error)` here.

        `on_late` is called if it is overdue, before it has ended.
        """
        call = _Call(side, on_late)

        def timed() -> T | None:
            if not call.taken.acquire(blocking=False):
                return None
            call.began = time.monotonic()
            return work()

        def ended(result: T | None, error: TierError | None) -> None:
            if call in self._under_way:
                del self._under_way[call]
                call.give_up = lambda: None  # it refers to this function, which refers to the call
                self._judge(call, error)
                done(cast(T, result), error)

        call.give_up = lambda: ended(None, TierError("no_thread", "all threads are stuck"))
        self._under_way[call] = None
        side.breaker.begin()
        side.threads.submit(timed, ended)

    def tick(self, now: float) -> None:
        """Once a second: look for what is overdue."""
        for call in list(self._under_way):
            since = call.asked if call.began is None else call.began
            if now - since > self._timeout and not call.late:
                self._overdue(call)

    def failed(self, side: Side, error: TierError, hopeless: bool = False) -> None:
        """The backend has failed; if it is `hopeless`, once is enough to cut it off."""
        if side.breaker.failed(str(error), hopeless):
            log.warning("L2 %s is cut off for %ss: %s", self._label, side.kind, error)
            self._telemetry.l2_breaker_opened.add(1, self._label, side.kind)

    def _judge(self, call: _Call, error: TierError | None) -> None:
        """What the outcome of a call says about the backend."""
        if isinstance(error, Replaced | Relocated):
            self._on_changed(error)
        elif error is not None and not isinstance(error, Missing | Corrupt):
            self._telemetry.l2_errors.add(1, self._label, call.side.kind, error.cause)
        if call.late:
            return  # it was judged when it became overdue
        if error is None or isinstance(error, _NOT_ITS_FAULT):
            call.side.breaker.succeeded()
        else:
            self.failed(call.side, error)

    def _overdue(self, call: _Call) -> None:
        if call.began is None:
            # It waits for its turn; but not for threads that may be stuck for ever, if its outcome
            # is waited for, or decides whether there will be others.
            gives_up = (call.side.awaited or call.is_probe) and self._is_stuck(call.side)
            if gives_up and call.taken.acquire(blocking=False):
                call.give_up()
            return
        call.late = True
        self._telemetry.l2_timeouts.add(1, self._label)
        # With no thread left there will be no third failure.
        self.failed(call.side, TierError("timeout"), hopeless=self._is_stuck(call.side))
        call.on_late()

    def _is_stuck(self, side: Side) -> bool:
        """Whether all threads are in calls that are overdue."""
        return sum(call.late for call in self._under_way if call.side is side) >= side.threads.size
