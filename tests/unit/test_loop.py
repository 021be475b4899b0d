"""The loop answers other threads, keeps its timers, and outlives what its callbacks raise."""

import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from sidecar.loop import Loop


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


def test_a_process_that_did_not_run_is_told_before_it_serves(loop: Loop) -> None:
    seen: list[str] = []

    def sleep_once() -> None:
        time.sleep(0.3)
        loop.post(lambda: seen.append("served"))

    loop.call(lambda: loop.watch_for_stalls(0.2, lambda: seen.append("stalled")), 5)
    loop.call(sleep_once, 5)
    loop.call(lambda: None, 5)
    assert seen == ["stalled", "served"]


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
    context = zmq.Context.instance()
    pair = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    pair[0].bind("inproc://starve")
    pair[1].connect("inproc://starve")
    got, going = threading.Event(), True

    def forever() -> None:
        if going:
            loop.post(forever)

    def read() -> None:
        pair[0].recv()
        got.set()

    loop.call(lambda: loop.add_reader(pair[0], read), 5)
    loop.post(forever)
    pair[1].send(b"x")
    assert got.wait(10)
    going = False
    loop.call(lambda: loop.remove_reader(pair[0]), 5)
    for socket in pair:
        socket.close()
