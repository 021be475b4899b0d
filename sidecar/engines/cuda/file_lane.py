"""Objects on their way from files into a worker's blocks, past the arena.

Each is read into a buffer on the GPU, where its sums are made; only what has the right digest is
copied to the blocks. A stage begins when the host has seen the end of the one before it.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from sidecar.engines.cuda import lane
from sidecar.engines.cuda.digest import digest
from sidecar.engines.cuda.driver import Driver, DriverError
from sidecar.engines.cuda.files import CannotRead, FileReader, ReadFailed
from sidecar.engines.cuda.kernel_table import KernelTable
from sidecar.engines.cuda.lane import Stuck, Transfer, Turns
from sidecar.engines.cuda.mapped_worker import WantedObject
from sidecar.engines.cuda.object_buffers import Buffer, ObjectBuffers
from sidecar.engines.cuda.plan import STEP_RUNS, Runs
from sidecar.engines.cuda.protocol import StoredObject

_IN_FLIGHT = 4


class FileLane(Turns[WantedObject]):
    """Transfers from files, object by object."""

    def __init__(self, driver: Driver, reader: FileReader) -> None:
        """Raises CannotRead and DriverError."""
        if not driver.has_kernels:
            raise CannotRead("there is no kernel that could check them")
        self._reader = reader
        buffers = ObjectBuffers(driver, reader)
        super().__init__([_Way(driver, reader, buffers) for _ in range(_IN_FLIGHT)])

    @property
    def failed(self) -> str | None:
        """Why nothing is begun any more."""
        return self._reader.failed

    def drop(self, worker: int) -> list[Transfer[WantedObject]]:
        """What has been read for it is not copied to its blocks either."""
        for way in self._ways:
            if way.transfer is not None and way.transfer.worker == worker:
                way.transfer.stop("the worker has left")
        return super().drop(worker)


class _Way:
    """An object on its way, with its stream and what the kernels need."""

    def __init__(self, driver: Driver, reader: FileReader, buffers: ObjectBuffers) -> None:
        self._driver, self._reader, self._buffers = driver, reader, buffers
        self._stream, self._event = driver.new_stream(), driver.new_event()
        self._table = KernelTable(driver)
        self._work: Iterator[None] = iter(())
        self.transfer: Transfer[WantedObject] | None = None

    def begin(self, transfer: Transfer[WantedObject], portion: WantedObject) -> None:
        self.transfer = transfer
        transfer.in_flight += 1
        self._work = self._fetch(portion)

    def poll(self) -> Transfer[WantedObject] | None:
        transfer = self.transfer
        if transfer is None:
            return None
        try:
            for _ in self._work:
                return None
        except (CannotRead, ReadFailed) as error:
            if transfer.error is None:
                transfer.unreadable = True
                transfer.stop(str(error))
        self.transfer = None
        transfer.in_flight -= 1
        return transfer

    def _fetch(self, wanted: WantedObject) -> Iterator[None]:
        """Yields while it waits. Raises CannotRead and ReadFailed."""
        buffer = yield from self._buffers.wait(wanted.stored.size)
        try:
            yield from self._read(wanted.stored, buffer)
            yield from self._check(wanted.stored, buffer)
            yield from self._scatter(wanted.runs, buffer)
        except ReadFailed:
            raise  # and the buffer is never used again: it may still be written to
        except CannotRead:
            self._buffers.give_back(buffer)
            raise
        self._buffers.give_back(buffer)

    def _read(self, stored: StoredObject, buffer: Buffer) -> Iterator[None]:
        read = self._reader.begin(stored.path, stored.offset, stored.size, buffer.address)
        yield from _until(read.is_done, "a read from a file")

    def _check(self, stored: StoredObject, buffer: Buffer) -> Iterator[None]:
        size = stored.size
        yield from self._on_gpu(lambda: self._table.sum_object(buffer.address, size, self._stream))
        if digest(self._table.sums(), size) != stored.digest:
            raise CannotRead(f"{stored.path}: not the bytes that were stored")

    def _scatter(self, runs: Runs, buffer: Buffer) -> Iterator[None]:
        for at in range(0, len(runs), STEP_RUNS):
            if self._has_left():
                return
            part = runs.take(slice(at, at + STEP_RUNS))
            places = buffer.address + part.offset
            launch = partial(self._table.copy_runs, part.device, places, part.size, self._stream)
            yield from self._on_gpu(launch)

    def _has_left(self) -> bool:
        """Whether the worker's blocks may not be touched any more."""
        return self.transfer is None or self.transfer.error is not None

    def _on_gpu(self, launch: Callable[[], None]) -> Iterator[None]:
        """Launch and wait; what fails harmlessly may have begun in part, and is waited for, too."""
        failure: DriverError | None = None
        try:
            launch()
        except DriverError as error:
            if error.is_fatal:
                raise
            failure = error
        self._driver.record(self._event, self._stream)
        yield from _until(lambda: self._driver.is_done(self._event), "a kernel")
        if failure is not None:
            raise CannotRead(str(failure))


def _until(is_done: Callable[[], bool], what: str) -> Iterator[None]:
    """Raises Stuck."""
    began = time.monotonic()
    while not is_done():
        if time.monotonic() - began > lane.STEP_SECONDS:
            raise Stuck(f"{what} did not end in {lane.STEP_SECONDS:.0f} s")
        yield
