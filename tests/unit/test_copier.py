"""Every job ends exactly once, on the loop, with the truth about its copies."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from sidecar.engines.copier import CopyPool


class Harness:
    """A pool whose completions are run by the test, as the loop would."""

    def __init__(self) -> None:
        self.posted: queue.Queue[Callable[[], None]] = queue.Queue()
        self.pool = CopyPool(2, self.posted.put)

    def run(self, pieces: list[Callable[[], None]]) -> bool:
        ended: list[bool] = []
        self.pool.submit(pieces, ended.append)
        self.posted.get(timeout=10)()
        assert len(ended) == 1 and self.posted.empty()
        return ended[0]


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.pool.stop(10)
    assert not any(thread.is_alive() for thread in harness.pool._threads)


def test_the_age_of_the_oldest_transfer(harness: Harness) -> None:
    assert harness.pool.oldest_seconds() == 0
    release = threading.Event()
    before = time.monotonic()
    harness.pool.submit([release.wait], lambda ok: None)
    after = time.monotonic()
    harness.pool.submit([lambda: None], lambda ok: None)
    harness.posted.get(timeout=10)()  # the second has ended, the first is the oldest still
    now, age = time.monotonic(), harness.pool.oldest_seconds()
    assert now - after <= age <= time.monotonic() - before
    release.set()
    harness.posted.get(timeout=10)()
    assert harness.pool.oldest_seconds() == 0


def test_all_pieces_run_before_the_end(harness: Harness) -> None:
    ran: list[int] = []
    assert harness.run([lambda i=i: ran.append(i) for i in range(50)])  # type: ignore[misc]
    assert sorted(ran) == list(range(50)) and harness.pool.depth == 0


def test_one_failing_piece_fails_the_job_and_no_other(harness: Harness) -> None:
    assert harness.run([lambda: None, lambda: 1 / 0, lambda: None]) is False  # type: ignore[list-item, return-value]
    assert harness.run([lambda: None]) is True
    assert harness.pool.alive()


def test_cancelled_jobs_end_as_failed_without_copying(harness: Harness) -> None:
    release, ran, ended = threading.Event(), [], []
    for _ in range(2):  # both threads are busy
        harness.pool.submit([lambda: release.wait(10) and None], lambda ok: None)
    harness.pool.submit([lambda: ran.append(1)], ended.append)
    assert harness.pool.depth == 3 and harness.pool.stuck_seconds() > 0
    harness.pool.cancel_all()
    release.set()
    for _ in range(3):
        harness.posted.get(timeout=10)()
    assert ran == [] and ended == [False] and harness.pool.depth == 0


def test_a_waiting_thread_holds_no_piece(harness: Harness) -> None:
    class Memory:
        def touch(self) -> None:
            pass

    memory = Memory()
    gone = weakref.ref(memory)
    assert harness.run([memory.touch, memory.touch])
    del memory
    for _ in range(1000):
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None
