"""When write-behind may write."""

from __future__ import annotations

import pytest

from sidecar.tiers import manners as module
from sidecar.tiers.manners import Manners


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list to be changed."""
    time = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def test_in_a_pause_it_writes_as_much_as_it_can(now: list[float]) -> None:
    manners = Manners(lambda: False, lambda: 1.0)
    assert manners.allow(since=100.0, in_flight=5)


def test_it_waits_for_a_pause_but_not_for_ever(now: list[float]) -> None:
    manners = Manners(lambda: True, lambda: 0.3)
    assert not manners.allow(since=99.0, in_flight=0)
    assert manners.allow(since=97.0, in_flight=5)


def test_under_full_load_one_at_a_time_with_pauses(now: list[float]) -> None:
    manners = Manners(lambda: True, lambda: 0.9)
    assert manners.allow(since=90.0, in_flight=0)
    assert not manners.allow(since=90.0, in_flight=1)
    manners.written(0.01)
    assert not manners.allow(since=90.0, in_flight=0)
    now[0] += 0.2
    assert manners.allow(since=90.0, in_flight=0)


def test_at_the_end_it_waits_for_nobody(now: list[float]) -> None:
    manners = Manners(lambda: True, lambda: 1.0)
    manners.patient = False
    assert manners.allow(since=100.0, in_flight=5)
