"""Where batches of copies become as fast as staging is measured, in the pauses of the child."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from sidecar.engines.cuda.calibration import _RUN_BYTES, Calibration
from sidecar.engines.cuda.driver import OUT_OF_MEMORY, Addresses, DriverError
from sidecar.engines.cuda.plan import SHORT_BYTES, STEP_BYTES
from tests.support.fake_gpu import FakeDriver

KIB = 1024
LINK, KERNEL = 50e9, 10e-6  # bytes a second; seconds to start the kernel
TURN = 1e-6  # of the child's loop


class Costly(FakeDriver):
    """Copies move nothing, but take the time that they would: `seconds_a_run` by direction."""

    def __init__(self, store: float, load: float) -> None:
        super().__init__()
        self.now, self.late = 0.0, 0.0
        self._seconds_a_run = {True: store, False: load}
        self.most_memory = 0

    def clock(self) -> float:
        self.now += TURN
        return self.now

    def copy(
        self, to: Addresses, source: Addresses, sizes: Addresses, stream: int, batched: bool
    ) -> None:
        self._call("copy")
        is_store = self._is_device(int(source[0]), 1)
        cost = max(int(sizes.sum()) / LINK, len(sizes) * self._seconds_a_run[is_store])
        self.now += cost + self.late
        self.most_memory = max(self.most_memory, sum(self._device.values()))

    def copy_runs(self, table: int, runs: int, stream: int) -> None:
        self._call("copy_runs")
        self.now += KERNEL

    def is_done(self, event: int) -> bool:
        self._call("is_done")
        return True


class Failing(Costly):
    """One kind of call fails, harmlessly."""

    def __init__(self, call: str) -> None:
        super().__init__(6e-7, 6e-7)
        self._failing = call

    def _call(self, name: str) -> None:
        super()._call(name)
        if name == getattr(self, "_failing", None):
            raise DriverError(name, OUT_OF_MEMORY)


def calibrated(driver: Costly, between: Callable[[int], None] = lambda turn: None) -> Calibration:
    """Run to the end; `between` is what happens after each turn."""
    calibration = Calibration(driver, driver.clock)
    turn = 0
    while calibration.advance():
        turn += 1
        between(turn)
    return calibration


@pytest.mark.parametrize("by_run", [(1e-8, 6e-7), (6e-7, 1e-8), (3e-7, 3e-7), (1e-5, 1e-5)])
def test_runs_are_staged_up_to_where_the_ways_are_equal(
    by_run: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    """A run in a batch takes a fixed time, or that of its bytes on the link, if that is more."""
    driver = Costly(*by_run)
    with caplog.at_level(logging.INFO):
        found = calibrated(driver).short_bytes
    for is_store, seconds in zip((True, False), by_run, strict=True):
        equal = seconds * LINK  # bytes of a run
        assert found[is_store] == next((n for n in _RUN_BYTES if n >= equal), _RUN_BYTES[-1])
    stores, loads = found[True] // KIB, found[False] // KIB
    assert f"under {stores} KiB are staged for stores, under {loads} KiB for loads" in caplog.text


def test_it_leaves_nothing_behind() -> None:
    driver = Costly(1e-7, 1e-7)
    calibrated(driver)
    assert not driver._device and not driver._pinned
    assert 0 < driver.most_memory <= 65 << 20


def test_a_busy_gpu_is_late_now_and_then() -> None:
    driver = Costly(6e-7, 6e-7)
    quiet = calibrated(driver).short_bytes

    def be_late(turn: int) -> None:
        driver.late = 5e-4 if turn % 5 == 0 else 0.0

    assert calibrated(driver, be_late).short_bytes == quiet


def test_what_others_were_in_between_does_not_count() -> None:
    """Orders come first: the loop comes back when their copies have ended."""
    driver = Costly(6e-7, 6e-7)
    quiet = calibrated(driver).short_bytes

    def move(turn: int) -> None:
        driver.now += 0.1 if turn % 7 == 0 else 0.0

    assert calibrated(driver, move).short_bytes == quiet


def test_without_a_pause_it_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    driver = Costly(6e-7, 6e-7)

    def move(turn: int) -> None:
        driver.now += 0.1

    calibration = calibrated(driver, move)
    assert set(calibration.short_bytes.values()) == {SHORT_BYTES}
    assert "it was never idle" in caplog.text
    assert not driver._device and not driver._pinned


@pytest.mark.parametrize("call", ["allocate", "allocate_host", "copy"])
def test_what_fails_harmlessly_leaves_what_is_published(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Failing(call)
    assert set(calibrated(driver).short_bytes.values()) == {SHORT_BYTES}
    assert "28 KiB are staged, the default, because nothing was measured" in caplog.text
    assert not driver._device and not driver._pinned


def test_a_fatal_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Costly(6e-7, 6e-7)

    def fail(name: str) -> None:
        raise DriverError(name, 700)

    monkeypatch.setattr(driver, "_call", fail)
    with pytest.raises(DriverError):
        calibrated(driver)


def test_without_memory_for_staging_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Costly(6e-7, 6e-7)
    real = driver.allocate

    def allocate(nbytes: int) -> int:
        if nbytes == STEP_BYTES:
            raise DriverError("allocate", OUT_OF_MEMORY)
        return real(nbytes)

    monkeypatch.setattr(driver, "allocate", allocate)
    assert set(calibrated(driver).short_bytes.values()) == {SHORT_BYTES}
    assert "no memory for staging" in caplog.text
    assert not driver._device and not driver._pinned


@pytest.mark.parametrize("call", ["record", "is_done"])
def test_nothing_is_freed_under_a_copy(call: str) -> None:
    """After such an error the process ends, as it does for a worker's copies."""
    driver = Failing(call)
    with pytest.raises(DriverError):
        calibrated(driver)
    assert driver.calls["free"] == driver.calls["free_host"] == 0
