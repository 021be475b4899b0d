"""The copy pool: threads that move bytes, and nothing else.

A job is cut into pieces that any thread may take, so that one large transfer uses all threads
and small ones are not stuck behind it for long. Completions go back to the loop thread.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

log = logging.getLogger(__name__)

Piece = Callable[[], None]
_WINDOW_SECONDS = 1.0


class Job:
    """One transfer: its pieces, and `on_done(ok)` to be run on the loop thread at the end."""

    __slots__ = ("_left", "_lock", "cancelled", "failed", "on_done", "submitted")

    def __init__(self, pieces: int, on_done: Callable[[bool], None]) -> None:
        self.on_done = on_done
        self.cancelled = False
        self.failed = False
        self.submitted = time.monotonic()
        self._left = pieces
        self._lock = threading.Lock()

    def piece_ended(self) -> bool:
        """Count one piece as ended; True for the last one."""
        with self._lock:
            self._left -= 1
            return not self._left


class CopyPool:
    """`threads` copy threads. `post` hands a callback to the loop thread."""

    def __init__(self, threads: int, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._queue: queue.SimpleQueue[tuple[Job, Piece] | None] = queue.SimpleQueue()
        self._jobs: set[Job] = set()
        self._progress = 0.0
        self._busy_since = self._busy_before = 0.0
        self._window = (time.monotonic(), 0.0)
        self._share = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"copy-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Transfers that have not ended."""
        return len(self._jobs)

    def submit(self, pieces: Sequence[Piece], on_done: Callable[[bool], None]) -> Job:
        """Run all `pieces` (at least one), then `on_done(ok)` on the loop thread.

        `ok` is False if a piece raised or the job was cancelled; every job ends. Loop thread.
        """
        job = self._begin(len(pieces), on_done)
        for piece in pieces:
            self._queue.put((job, piece))
        return job

    def adopt(self, on_done: Callable[[bool], None]) -> Callable[[bool], None]:
        """Count a transfer that somebody else runs as one of ours, until the returned function
        is called with its outcome. That calls `on_done(ok)`, as `submit` does. Loop thread.
        """
        job = self._begin(0, on_done)

        def end(ok: bool) -> None:
            job.failed = not ok
            self._progress = time.monotonic()
            self._end(job)

        return end

    def stuck_seconds(self) -> float:
        """For how long there has been work and no piece of it has ended; 0 when idle."""
        return time.monotonic() - self._progress if self._jobs else 0.0

    def oldest_seconds(self) -> float:
        """For how long the oldest transfer that has not ended has been here. Any thread."""
        began = min((job.submitted for job in list(self._jobs)), default=None)
        return 0.0 if began is None else time.monotonic() - began

    def idle_seconds(self) -> float:
        """For how long there has been nothing to do; 0 when busy."""
        return 0.0 if self._jobs else time.monotonic() - self._progress

    def busy_share(self) -> float:
        """The share of the time with something to do, over a second or more before now."""
        now = time.monotonic()
        busy = self._busy_before + (now - self._busy_since if self._jobs else 0.0)
        start, busy_then = self._window
        if now - start >= _WINDOW_SECONDS:
            self._share = (busy - busy_then) / (now - start)
            self._window = (now, busy)
        return self._share

    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def cancel_all(self) -> None:
        """Skip the pieces that have not begun; their jobs end as failed. Loop thread."""
        for job in self._jobs:
            job.cancelled = True

    def stop(self, timeout: float) -> None:
        """End the threads after what is queued; wait for them at most `timeout` seconds."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self, pieces: int, on_done: Callable[[bool], None]) -> Job:
        if not self._jobs:
            self._progress = self._busy_since = time.monotonic()
        job = Job(pieces, on_done)
        self._jobs.add(job)
        return job

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            job, piece = item
            if not (job.cancelled or job.failed):
                try:
                    piece()
                except Exception:
                    log.exception("a copy failed")
                    job.failed = True
            self._progress = time.monotonic()
            if job.piece_ended():
                self._post(partial(self._end, job))
            # A piece holds a worker's memory: not while this thread waits for the next one.
            del item, job, piece

    def _end(self, job: Job) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._busy_before += time.monotonic() - self._busy_since
        job.on_done(not (job.failed or job.cancelled))
