"""The one thread that owns sockets and cache state: poll, timers, work from other threads.

Everything that changes the cache runs here, one thing after the other, so nothing needs a
lock. Other threads hand their results in with `post`, or ask with `call`.
"""

import heapq
import itertools
import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from sidecar.activity import activity
from sidecar.flow import Flows

log = logging.getLogger(__name__)
T = TypeVar("T")
# What is due runs for so long in a turn at most; then it is the sockets' turn again.
_TURN_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 60.0
_ACTIVITY_SECONDS = 1.0  # between two looks at the process's activity


class Loop:
    """A poll loop over descriptors with timers. `run` it on one thread and stay there.

    Between two callbacks `flows` go on as far as they can.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self.flows = Flows(self.call_later)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._running = True
        self._turn_began = time.monotonic()
        self._activity = self._turn_began, activity()
        self._stall_seconds = self._unanswered_seconds = float("inf")
        self._on_stall: Callable[[], None] = lambda: None
        self._on_failure: Callable[[str], None] = lambda detail: None

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Run `callback` in every turn in which the descriptor `fd` is readable."""
        self._poll.register(fd, select.POLLIN)
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._readers[fd]

    def post(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop thread soon. Any thread, signal handlers included."""
        self._posted.append(callback)
        os.eventfd_write(self._wake, 1)

    def call(self, fn: Callable[[], T], timeout: float) -> T:
        """Run `fn` on the loop thread and return its result; from another thread only.

        Raises what `fn` raises, TimeoutError if it has not run within `timeout` seconds; it
        will not run later then.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn())
            except Exception as error:
                future.set_exception(error)

        self.post(run)
        try:
            return future.result(timeout)
        except (TimeoutError, CancelledError):
            if future.cancel() or not future.done():
                raise TimeoutError(f"the wire thread did not answer in {timeout} s") from None
            return future.result()

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Run `callback` after `delay` seconds. Loop thread only. Raises ValueError for NaN."""
        due = time.monotonic() + delay
        if math.isnan(due):
            raise ValueError("a timer needs a time")
        heapq.heappush(self._timers, (due, next(self._order), callback))

    def every(self, interval: float, callback: Callable[[], None]) -> None:
        """Run `callback` every `interval` seconds, for as long as the loop runs."""

        def tick() -> None:
            self.call_later(interval, tick)
            callback()

        self.call_later(interval, tick)

    def watch_for_stalls(
        self, stall_seconds: float, unanswered_seconds: float, on_stall: Callable[[], None]
    ) -> None:
        """Call `on_stall` when the process stood still for `stall_seconds`, before anything else.

        The time in which it worked, or was ready to and got no CPU, does not count, unless a turn
        took as long as `unanswered_seconds`: who asked meanwhile has given up, whatever the reason.
        To be told in time there must be a timer that is due more often.
        """
        self._stall_seconds, self._unanswered_seconds = stall_seconds, unanswered_seconds
        self._on_stall = on_stall

    def count_failures(self, on_failure: Callable[[str], None]) -> None:
        """Call `on_failure(detail)` for every callback and every flow that raises."""
        self._on_failure = self.flows.on_failure = on_failure

    def run(self) -> None:
        """Serve until `stop`. A callback that raises is logged, counted and costs nobody else."""
        self._turn_began = time.monotonic()
        self._activity = self._turn_began, activity()
        while self._running:
            ready = self._poll.poll(self._poll_timeout_ms())
            self._look_for_stall()
            for fd, _ in ready:
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd in self._readers:
                    self._guard(self._readers[fd])
            self._run_posted()
            self._run_timers()

    def stop(self) -> None:
        """Make `run` return after the current turn. Loop thread only."""
        self._running = False

    def _look_for_stall(self) -> None:
        now = time.monotonic()
        began, self._turn_began = self._turn_began, now
        away = now - began
        if away > self._stall_seconds:
            stood_still = max(0.0, away - activity().since(self._activity[1]))
            if stood_still > self._stall_seconds or away > self._unanswered_seconds:
                log.error("the server did not run for %.1f s of %.1f s", stood_still, away)
                self._guard(self._on_stall)
        if now - self._activity[0] > _ACTIVITY_SECONDS:
            self._activity = now, activity()

    def _poll_timeout_ms(self) -> int | None:
        if self._posted:
            return 0
        if not self._timers:
            return None
        wait = min(self._timers[0][0] - time.monotonic(), _LONGEST_POLL_SECONDS)
        return max(0, int(wait * 1000) + 1)

    def _run_posted(self) -> None:
        # Work that posts more work must not starve the sockets.
        until = time.monotonic() + _TURN_SECONDS
        for _ in range(len(self._posted)):
            self._guard(self._posted.popleft())
            if time.monotonic() > until:
                break

    def _run_timers(self) -> None:
        until = time.monotonic() + _TURN_SECONDS
        while self._timers and self._timers[0][0] <= time.monotonic() <= until:
            self._guard(heapq.heappop(self._timers)[2])

    def _guard(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            log.exception("a callback of the wire loop failed")
            self._on_failure(repr(error))
        self.flows.run()
