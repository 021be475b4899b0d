"""The one thread that owns sockets and cache state: poll, timers, work from other threads.

Everything that changes the cache runs here, one thing after the other, so nothing needs a
lock. Other threads hand their results in with `post`, or ask with `call`.
"""

import heapq
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import zmq

log = logging.getLogger(__name__)
T = TypeVar("T")
_POSTED_A_TURN = 256


class Loop:
    """A poll loop over ZMQ sockets with timers. `run` it on one thread and stay there."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._readers: dict[Any, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._wake, zmq.POLLIN)
        self._running = True
        self._stall_seconds = float("inf")
        self._on_stall: Callable[[], None] = lambda: None

    def add_reader(self, socket: "zmq.Socket[bytes]", callback: Callable[[], None]) -> None:
        self._poller.register(socket, zmq.POLLIN)
        self._readers[socket] = callback

    def remove_reader(self, socket: "zmq.Socket[bytes]") -> None:
        self._poller.unregister(socket)
        del self._readers[socket]

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
        """Run `callback` after `delay` seconds. Loop thread only."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), callback))

    def every(self, interval: float, callback: Callable[[], None]) -> None:
        """Run `callback` every `interval` seconds, for as long as the loop runs."""

        def tick() -> None:
            self.call_later(interval, tick)
            callback()

        self.call_later(interval, tick)

    def watch_for_stalls(self, seconds: float, on_stall: Callable[[], None]) -> None:
        """Call `on_stall` when the process has not run for `seconds`, before anything else.

        To be told in time there must be a timer that is due more often.
        """
        self._stall_seconds, self._on_stall = seconds, on_stall

    def run(self) -> None:
        """Serve until `stop`. A callback that raises is logged and costs nobody else."""
        turn = time.monotonic()
        while self._running:
            ready = self._poller.poll(self._poll_timeout_ms())
            last, turn = turn, time.monotonic()
            if turn - last > self._stall_seconds:
                log.error("the server did not run for %.1f s", turn - last)
                self._guard(self._on_stall)
            for socket, _ in ready:
                if socket == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._guard(self._readers[socket])
            self._run_posted()
            self._run_timers()

    def stop(self) -> None:
        """Make `run` return after the current turn. Loop thread only."""
        self._running = False

    def _poll_timeout_ms(self) -> int | None:
        if self._posted:
            return 0
        if not self._timers:
            return None
        return max(0, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)

    def _run_posted(self) -> None:
        # A bounded share of a turn: work that posts more work must not starve the sockets.
        for _ in range(min(len(self._posted), _POSTED_A_TURN)):
            self._guard(self._posted.popleft())

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._guard(heapq.heappop(self._timers)[2])

    @staticmethod
    def _guard(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback of the wire loop failed")
