"""The loop answers other threads, keeps its timers, and outlives what its callbacks raise."""

import itertools
import math
import socket
import threading
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.activity import Activity
from sidecar.loop import Loop
from tests.support.descriptors import no_free_descriptor
from tests.support.server import wait_until


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.post(loop.stop)
    thread.join(10)
    assert not thread.is_alive()


def test_call_returns_and_raises_what_the_function_does(loop: Loop) -> None:
    assert loop.call(lambda: threading.current_thread().name, 5) != threading.current_thread().name
    with pytest.raises(KeyError):
        loop.call(lambda: {}["nothing"], 5)


def test_a_busy_loop_is_a_timeout_and_the_call_never_happens(loop: Loop) -> None:
    release, happened = threading.Event(), []
    loop.post(lambda: release.wait(20) and None)
    with pytest.raises(TimeoutError, match="did not answer"):
        loop.call(lambda: happened.append(1), 0.05)
    release.set()
    loop.call(lambda: None, 5)
    assert happened == []


def test_a_callback_that_raises_costs_nobody_else(loop: Loop) -> None:
    for _ in range(3):
        loop.post(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert loop.call(lambda: "alive", 5) == "alive"


class Clocks:
    """The loop's clocks, moved by hand: time passes, and the process works in some of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.worked = 100.0
        monkeypatch.setattr("sidecar.loop.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("sidecar.loop.activity", lambda: Activity(self.worked, 0.0))

    def pass_by(self, seconds: float, work: float) -> None:
        self.now += seconds
        self.worked += work


@pytest.mark.parametrize(
    ("seconds", "work", "is_stall"),
    [(6, 0, True), (6, 0.5, True), (6, 6, False), (9, 4.5, False), (11, 11, True)],
)
def test_a_process_that_stood_still_is_told_before_it_serves(
    monkeypatch: pytest.MonkeyPatch, seconds: float, work: float, is_stall: bool
) -> None:
    """Own work is no stall, unless it took so long that nobody waits for an answer any more."""
    loop, clocks, seen = Loop(), Clocks(monkeypatch), []
    loop.watch_for_stalls(5, 10, lambda: seen.append("stalled"))

    def serve() -> None:
        seen.append("served")
        loop.stop()

    def be_away() -> None:
        clocks.pass_by(seconds, work)
        loop.post(serve)

    loop.post(be_away)
    loop.run()
    assert seen == ["stalled", "served"] if is_stall else ["served"]


def test_the_loop_runs_on_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it looks at the process's activity in every turn, and for a stall as well."""
    loop, stalls, turns, now = Loop(), list[str](), iter(range(9)), itertools.count(step=2)
    monkeypatch.setattr("sidecar.loop.time", SimpleNamespace(monotonic=lambda: next(now)))
    loop.watch_for_stalls(0, 0, lambda: stalls.append("stall"))

    def turn() -> None:
        loop.post(turn if next(turns, None) is not None else loop.stop)

    loop.post(turn)
    with no_free_descriptor():
        loop.run()
    assert len(stalls) > 9


def test_a_failure_is_counted(loop: Loop) -> None:
    failures: list[str] = []
    loop.call(lambda: loop.count_failures(failures.append), 5)
    loop.post(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    loop.call(lambda: loop.call_later(0, lambda: {}["timer"]), 5)
    wait_until(lambda: len(failures) == 2, "both are counted")
    assert "division" in failures[0] and "timer" in failures[1]


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=20))
def test_no_number_of_seconds_ends_the_loop(delays: list[float]) -> None:
    """NaN is refused to whoever asks, before it is among the timers; the rest come in order."""
    loop, seen = Loop(), []

    def ask(delay: float) -> None:
        try:
            loop.call_later(delay, lambda: seen.append(delay))
        except ValueError:
            assert math.isnan(delay)

    for delay in delays:
        loop.post(partial(ask, delay))
    loop.post(lambda: loop.call_later(0, loop.stop))
    loop.run()
    assert {d for d in delays if d <= 0} <= set(seen)


def test_what_is_due_does_not_starve_the_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much that is: a turn ends after a bounded time."""
    loop, clocks, seen = Loop(), Clocks(monkeypatch), []
    ours, theirs = socket.socketpair()
    theirs.send(b"x")

    def work(name: str) -> None:
        seen.append(name)
        clocks.pass_by(1, 1)

    for _ in range(3):
        loop.post(partial(work, "posted"))
        loop.call_later(0, partial(work, "timer"))
    loop.add_reader(ours.fileno(), partial(work, "socket"))
    loop.call_later(0, loop.stop)
    loop.run()
    turns = "".join(name[0] for name in seen).split("s")
    assert seen.count("posted") == seen.count("timer") == 3
    assert max(map(len, turns)) <= 2, "one of each before it is the socket's turn again"
    ours.close()
    theirs.close()


def test_timers_run_in_order_and_repeat(loop: Loop) -> None:
    seen, done = [], threading.Event()

    def start() -> None:
        loop.call_later(0.03, lambda: seen.append("late"))
        loop.call_later(0.01, lambda: seen.append("early"))
        loop.every(0.005, lambda: seen.append("tick"))
        loop.call_later(0.1, done.set)

    loop.post(start)
    assert done.wait(10)
    ordered = [s for s in seen if s != "tick"]
    assert ordered == ["early", "late"] and seen.count("tick") > 1


def test_work_that_posts_work_does_not_starve_the_sockets(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    got, going = threading.Event(), True

    def forever() -> None:
        if going:
            loop.post(forever)

    def read() -> None:
        ours.recv(1)
        got.set()

    loop.call(lambda: loop.add_reader(ours.fileno(), read), 5)
    loop.post(forever)
    theirs.send(b"x")
    assert got.wait(10)
    going = False
    loop.call(lambda: loop.remove_reader(ours.fileno()), 5)
    ours.close()
    theirs.close()
