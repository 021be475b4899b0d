"""The breaker: closed, open, half-open."""

from __future__ import annotations

from sidecar.tiers.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    assert [breaker.failed("EIO") for _ in range(3)] == [False, False, True]
    return breaker


def test_it_opens_after_three_failures_in_a_row() -> None:
    breaker = Breaker(Clock())
    for _ in range(5):
        breaker.failed("EIO")
        breaker.failed("EIO")
        breaker.succeeded()
    assert breaker.allows()
    assert not opened(Clock()).allows()


def test_after_a_pause_one_call_passes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now = 1.0
    assert breaker.state == "half-open"
    assert breaker.allows()
    breaker.begin()
    assert not breaker.allows()
    breaker.succeeded()
    assert (breaker.state, breaker.allows()) == ("closed", True)


def test_each_pause_is_longer_up_to_a_minute() -> None:
    clock = Clock()
    breaker = opened(clock)
    pauses = []
    for _ in range(10):
        start = clock.now
        while not breaker.allows():
            clock.now += 0.5
        pauses.append(clock.now - start)
        breaker.begin()
        assert breaker.failed("still")
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    breaker.succeeded()
    assert breaker.allows()


def test_calls_from_before_it_opened_prolong_nothing() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.failed("late")
    clock.now = 1.0
    assert breaker.allows()
    assert breaker.last_failure == "late"
