"""One direction of transfers: the portions on their way, each on a stream, and who is next.

Stores and loads have a lane each, so neither waits for the other. Within a lane transfers take
turns portion by portion.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from sidecar.engines.cuda.driver import OUT_OF_MEMORY, Addresses, Driver, DriverError
from sidecar.engines.cuda.plan import Ints, Runs, Step, windows
from sidecar.engines.cuda.staging import Staging

log = logging.getLogger(__name__)

# On a GPU that is busy with inference a kernel begins some 1.6 ms late (LMCache PR#5067), in which
# the link could move 64 MiB and more: so much must be under way, and no kernel wait for another.
_IN_FLIGHT = 4
# A portion takes a millisecond. If this is not enough, the GPU does not answer any more.
STEP_SECONDS = 10.0


Portion = TypeVar("Portion")


class Stuck(Exception):
    """A copy that does not end. Only the end of the process ends it."""


class Transfer(Generic[Portion]):
    """A transfer and how far it is; `waited` seconds for its event.

    `next` is the portion to be begun next. It is planned while the one before it moves.
    """

    def __init__(self, job: int, worker: int, waited: float, steps: Iterator[Portion]) -> None:
        self.job, self.worker, self.waited = job, worker, waited
        self.began = time.monotonic()
        self.in_flight = 0
        self.error: str | None = None
        self.file_failed = False  # the error is that of a file
        self.digests: dict[int, bytes] = {}  # of what has been written to files, by its place
        self._steps = steps
        self.next = next(steps, None)

    def advance(self) -> None:
        """The portion `next` is on its way."""
        self.next = next(self._steps, None)

    def stop(self, error: str) -> None:
        """Begin nothing more."""
        self.error, self.next = error, None


class Way(Protocol[Portion]):
    """Where one portion can be on its way, of `transfer`."""

    transfer: Transfer[Portion] | None

    def begin(self, transfer: Transfer[Portion], portion: Portion) -> None:
        """Begin `portion`. What fails harmlessly is the transfer's `error`.

        It is on its way all the same: some of it may have begun.
        """

    def poll(self) -> Transfer[Portion] | None:
        """The transfer whose portion has ended here, None if there is none. Raises Stuck."""


class Turns(Generic[Portion]):
    """Transfers that take turns. For the CUDA thread only.

    All methods raise DriverError if fatal.
    """

    def __init__(self, ways: Sequence[Way[Portion]]) -> None:
        self._ways = ways
        self._turns: deque[Transfer[Portion]] = deque()

    @property
    def is_idle(self) -> bool:
        return not self._turns and all(way.transfer is None for way in self._ways)

    def add(self, transfer: Transfer[Portion]) -> None:
        """Queue a transfer of at least one portion."""
        self._turns.append(transfer)

    def advance(self) -> list[Transfer[Portion]]:
        """Begin what can begin; returns the transfers that have ended. Raises Stuck."""
        ended = []
        for way in self._ways:
            transfer = way.poll()
            if transfer is None or transfer.next is not None:
                continue
            if transfer in self._turns:  # it failed on its way
                self._turns.remove(transfer)
            if not transfer.in_flight:
                ended.append(transfer)
        for way in self._ways:
            if way.transfer is None and self._turns:
                self._begin(way, self._turns.popleft())
        return ended

    def drop(self, worker: int) -> list[Transfer[Portion]]:
        """Begin nothing more for `worker`; returns what has ended by that."""
        dropped = [transfer for transfer in self._turns if transfer.worker == worker]
        for transfer in dropped:
            self._turns.remove(transfer)
            transfer.stop("the worker has left")
        return [transfer for transfer in dropped if not transfer.in_flight]

    def _begin(self, way: Way[Portion], transfer: Transfer[Portion]) -> None:
        assert transfer.next is not None
        way.begin(transfer, transfer.next)
        if transfer.error is None:
            transfer.advance()
        if transfer.next is not None:
            self._turns.append(transfer)


class HostBytes(Protocol):
    """Host memory by offset. `PinnedArena` is one."""

    def need(self, offsets: Ints) -> bool:
        """Whether copies to and from these offsets may be begun in batches. Pins them if it can."""

    def addresses(self, offsets: Ints) -> Ints:
        """What copies call the bytes at these offsets."""


class Lane(Turns[Step]):
    """Stores or loads."""

    def __init__(
        self, driver: Driver, arena: HostBytes, is_store: bool, in_flight: int = _IN_FLIGHT
    ) -> None:
        """At most `in_flight` portions are on their way."""
        self._staged = [_Way(driver, arena, is_store) for _ in range(in_flight)]
        super().__init__(self._staged)

    @property
    def has_staging(self) -> bool:
        """Whether there is a staging buffer; there is none before the first staged step."""
        return any(way.has_buffer for way in self._staged)

    def free(self) -> None:
        """Let go of the staging buffers: it is idle, and will not be used again."""
        for way in self._staged:
            way.free()


class _Way:
    """A portion on its way, with its stream, the event that tells its end, its staging buffer."""

    def __init__(self, driver: Driver, arena: HostBytes, is_store: bool) -> None:
        self._driver, self._arena, self._is_store = driver, arena, is_store
        self._stream, self._event = driver.new_stream(), driver.new_event()
        self._began = 0.0
        self._staging: Staging | None = None
        self._no_staging = not driver.has_kernels
        self.transfer: Transfer[Step] | None = None

    def begin(self, transfer: Transfer[Step], step: Step) -> None:
        try:
            if step.staged and self._has_staging():
                self._begin_staged(step.runs)
            else:
                self._copy(step.runs.device, step.runs)
        except DriverError as error:
            if error.is_fatal:
                raise
            transfer.stop(str(error))
        self._driver.record(self._event, self._stream)
        self._began = time.monotonic()
        self.transfer = transfer
        transfer.in_flight += 1

    def poll(self) -> Transfer[Step] | None:
        transfer = self.transfer
        if transfer is None:
            return None
        if not self._driver.is_done(self._event):
            if time.monotonic() - self._began > STEP_SECONDS:
                raise Stuck(f"a copy did not end in {STEP_SECONDS:.0f} s")
            return None
        self.transfer = None
        transfer.in_flight -= 1
        return transfer

    @property
    def has_buffer(self) -> bool:
        return self._staging is not None

    def free(self) -> None:
        if self._staging is not None:
            self._staging.free()
            self._staging = None

    def _has_staging(self) -> bool:
        """Whether there is a staging buffer: the GPU may have no memory left for one."""
        if self._staging is None and not self._no_staging:
            try:
                self._staging = Staging(self._driver)
            except DriverError as error:
                if error.code != OUT_OF_MEMORY:
                    raise
                self._no_staging = True
                log.warning("no staging buffer, short runs are copied one by one: %s", error)
        return self._staging is not None

    def _begin_staged(self, runs: Runs) -> None:
        assert self._staging is not None
        staging, stretches = self._staging, windows(runs)
        places = staging.buffer + np.cumsum(runs.size) - runs.size
        if self._is_store:
            staging.copy_runs(places, runs.device, runs.size, self._stream)
            self._copy(staging.buffer + stretches.device, stretches)
        else:
            self._copy(staging.buffer + stretches.device, stretches)
            staging.copy_runs(runs.device, places, runs.size, self._stream)

    def _copy(self, device: Ints, runs: Runs) -> None:
        """Copy between these device addresses and the runs' places in the arena."""
        batched = self._arena.need(runs.offset)
        host = self._arena.addresses(runs.offset)
        to, source = (host, device) if self._is_store else (device, host)
        self._driver.copy(_words(to), _words(source), _words(runs.size), self._stream, batched)


def _words(values: Ints) -> Addresses:
    return np.ascontiguousarray(values).view(np.uint64)
