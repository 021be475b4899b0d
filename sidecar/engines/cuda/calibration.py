"""From which length on runs are copied one by one: measured on the GPU, when it has nothing to do.

Staging costs a kernel and a copy within the GPU's memory, batches cost time for each run. Where
they cross depends on GPU, link and driver: from 4 KiB to more than 28 KiB have been published.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from sidecar.engines.cuda.driver import Driver, DriverError
from sidecar.engines.cuda.lane import Lane, Transfer
from sidecar.engines.cuda.plan import SHORT_BYTES, Ints, Runs, Step

log = logging.getLogger(__name__)

_RUN_BYTES = tuple(kib << 10 for kib in (4, 8, 16, 24, 32, 48, 64, 96, 128))
# A sample is as many portions as are under way at once, of so many bytes.
_SAMPLE_STEPS, _STEP_BYTES = 2, 8 << 20
_SAMPLE_BYTES = _SAMPLE_STEPS * _STEP_BYTES
# Of each way: a GPU that is busy with inference is late now and then, and never early.
_REPEATS = 3
_MOST_SAMPLES = 4 * 2 * 2 * _REPEATS * len(_RUN_BYTES)
# Between two steps of ours: then others had the loop, and the time says nothing.
_PAUSE_SECONDS = 1e-3
# Copies leave the multiprocessors to inference, so they are taken where it makes no difference.
_AS_FAST = 1.05


_Memory = TypeVar("_Memory", Lane, "_Scratch")


class _NoAnswer(Exception):
    """It cannot be measured; the text says why."""


class Calibration:
    """A sample of a fraction of a millisecond at a time, until `short_bytes` is known.

    `short_bytes[is_store]`: shorter runs are staged. For the CUDA thread only.
    """

    def __init__(self, driver: Driver, clock: Callable[[], float] = time.perf_counter) -> None:
        self.short_bytes = {True: SHORT_BYTES, False: SHORT_BYTES}
        self._driver, self._clock = driver, clock
        # Without kernels nothing is staged.
        self._work: Iterator[None] = self._measure() if driver.has_kernels else iter(())
        self._last = 0.0
        self._disturbed = False
        self._samples = 0

    def advance(self) -> bool:
        """Go on, as there is nothing else to do; False when it is over.

        Raises DriverError, and Stuck: what has begun may be under way then.
        """
        self._disturbed |= self._clock() - self._last > _PAUSE_SECONDS
        goes_on = False
        try:
            goes_on = next(self._work, "over") != "over"
        except _NoAnswer as error:
            log.warning(
                "runs under %d KiB are staged, the default, because nothing was measured: %s",
                SHORT_BYTES >> 10,
                error,
            )
        self._last = self._clock()
        return goes_on

    def _measure(self) -> Generator[None, None, None]:
        found = {}
        with _freed(_scratch(self._driver)) as scratch:
            for is_store in (True, False):
                with _freed(Lane(self._driver, scratch, is_store, _SAMPLE_STEPS)) as lane:
                    found[is_store] = yield from self._crossing(lane, scratch)
        self.short_bytes = found
        stores, loads = found[True] >> 10, found[False] >> 10
        log.info("runs under %d KiB are staged for stores, under %d KiB for loads", stores, loads)

    def _crossing(self, lane: Lane, scratch: "_Scratch") -> Generator[None, None, int]:
        """The length from which on batches are as fast as staging, the longest if none is."""
        short = _RUN_BYTES[-1]
        for size in reversed(_RUN_BYTES):
            runs = scratch.runs(size)
            batches = yield from self._best(lane, _steps(runs, staged=False))
            staged = yield from self._best(lane, _steps(runs, staged=True))
            if not lane.has_staging:
                raise _NoAnswer("there is no memory for staging")
            if batches > staged * _AS_FAST:
                break
            short = size
        return short

    def _best(self, lane: Lane, steps: Sequence[Step]) -> Generator[None, None, float]:
        seconds: list[float] = []
        while len(seconds) < _REPEATS:
            self._samples += 1
            if self._samples > _MOST_SAMPLES:
                raise _NoAnswer("it was never idle")
            self._disturbed = False
            took = yield from self._sample(lane, steps)
            if not self._disturbed:
                seconds.append(took)
        return min(seconds)

    def _sample(self, lane: Lane, steps: Sequence[Step]) -> Generator[None, None, float]:
        began = self._clock()
        lane.add(Transfer(0, 0, 0.0, iter(steps)))
        while not lane.is_idle:
            for ended in lane.advance():
                if ended.error is not None:
                    raise _NoAnswer(ended.error)
            yield
        return self._clock() - began


class _Scratch:
    """Memory that stands for a worker's blocks and for the arena: nobody else's bytes."""

    def __init__(self, driver: Driver, blocks: int, host: int) -> None:
        self._driver, self._blocks, self._host = driver, blocks, host

    def runs(self, size: int) -> Runs:
        return every_other(self._blocks, size, _SAMPLE_BYTES // size)

    def need(self, offsets: Ints) -> bool:
        return True

    def addresses(self, offsets: Ints) -> Ints:
        return self._host + offsets

    def free(self) -> None:
        """Raises DriverError."""
        self._driver.free(self._blocks)
        self._driver.free_host(self._host)


def every_other(blocks: int, size: int, count: int) -> Runs:
    """An object of `count` runs of `size` bytes: with gaps in the blocks, shuffled, none in it."""
    order = np.random.default_rng(0).permutation(count)
    places = np.arange(count, dtype=np.int64) * size
    return Runs(blocks + 2 * size * order, places, np.full(count, size))


def _steps(runs: Runs, staged: bool) -> list[Step]:
    """The runs of a sample in portions of equal size."""
    each = len(runs) // _SAMPLE_STEPS
    starts = range(0, len(runs), each)
    return [Step(runs.take(slice(start, start + each)), staged) for start in starts]


def _scratch(driver: Driver) -> _Scratch:
    """Raises _NoAnswer if there is no memory for it, and DriverError if fatal."""
    try:
        blocks = driver.allocate(2 * _SAMPLE_BYTES)
        try:
            return _Scratch(driver, blocks, driver.allocate_host(_SAMPLE_BYTES))
        except DriverError:
            driver.free(blocks)
            raise
    except DriverError as error:
        if error.is_fatal:
            raise
        raise _NoAnswer(str(error)) from None


@contextmanager
def _freed(memory: _Memory) -> Iterator[_Memory]:
    """Free it afterwards, but for errors of the driver: copies may be under way then."""
    try:
        yield memory
    except _NoAnswer:
        memory.free()
        raise
    memory.free()
