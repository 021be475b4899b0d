"""Copies jobs one after the other in a thread, and knows which have ended."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("vllm.kv_sidecar")


@dataclass(frozen=True, slots=True)
class Done:
    """A job that has ended, after `seconds`; `moved` bytes, or None if it failed."""

    job: int
    moved: int | None
    seconds: float


class Copier:
    """Runs what it is given in the order in which it is given."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[int, Callable[[], int]] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._open: set[int] = set()
        self._done: list[Done] = []
        self._thread = threading.Thread(target=self._run, name="kv-sidecar copies", daemon=True)
        self._thread.start()

    def submit(self, job: int, copy: Callable[[], int]) -> None:
        """Have `copy`, which returns how many bytes it moved, run as `job`."""
        with self._changed:
            self._open.add(job)
        self._jobs.put((job, copy))

    def run_now(self, job: int, copy: Callable[[], int]) -> None:
        """As `submit`, but before all that waits, and ended on return."""
        self._record(_timed(job, copy))

    def take_done(self) -> list[Done]:
        """The jobs that have ended since the last call."""
        with self._changed:
            done, self._done = self._done, []
        return done

    def wait(self, jobs: set[int]) -> None:
        """Until all of `jobs` that were submitted have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._open.isdisjoint(jobs))

    def stop(self) -> None:
        """After what has been submitted, end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._record(_timed(*item))
            # The mapping that a job holds ends with it, not with the next job.
            del item

    def _record(self, done: Done) -> None:
        with self._changed:
            self._done.append(done)
            self._open.discard(done.job)
            self._changed.notify_all()


def _timed(job: int, copy: Callable[[], int]) -> Done:
    begun = time.monotonic()
    try:
        moved: int | None = copy()
    except Exception:
        logger.exception("job %d was not copied", job)
        moved = None
    return Done(job, moved, time.monotonic() - begun)
