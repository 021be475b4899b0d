"""Objects on their way between files and a worker's blocks, past the arena.

Each is in a buffer on the GPU for a while, where its sums are made: only what has the right
digest is copied to blocks, and what goes to a file is sent home with its digest. A stage begins
when the host has seen the end of the one before it.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from sidecar.engines.cuda import lane
from sidecar.engines.cuda.digest import digest
from sidecar.engines.cuda.driver import Driver, DriverError
from sidecar.engines.cuda.file_mover import CannotMove, FileMover, MoveFailed
from sidecar.engines.cuda.kernel_table import KernelTable
from sidecar.engines.cuda.lane import Stuck, Transfer, Turns
from sidecar.engines.cuda.mapped_worker import ObjectRuns
from sidecar.engines.cuda.object_buffers import Buffer, ObjectBuffers
from sidecar.engines.cuda.plan import STEP_RUNS, Runs
from sidecar.engines.cuda.protocol import FileObject

# Objects on their way. A load waits for the buffers of few stores.
_STORES, _LOADS = 2, 4


class FileLane(Turns[ObjectRuns]):
    """Transfers of one direction, object by object."""

    def __init__(
        self, driver: Driver, mover: FileMover, buffers: ObjectBuffers, is_store: bool
    ) -> None:
        """Raises DriverError."""
        count = _STORES if is_store else _LOADS
        super().__init__([_Way(driver, mover, buffers, is_store) for _ in range(count)])

    def drop(self, worker: int) -> list[Transfer[ObjectRuns]]:
        """What is on its way for it does not come from its blocks or to them any more."""
        for way in self._ways:
            if way.transfer is not None and way.transfer.worker == worker:
                way.transfer.stop("the worker has left")
        return super().drop(worker)


def file_lanes(driver: Driver, mover: FileMover) -> dict[bool, FileLane]:
    """That of stores (True) and that of loads. Raises CannotMove and DriverError."""
    if not driver.has_kernels:
        raise CannotMove("there is no kernel that could make checksums")
    buffers = ObjectBuffers(driver, mover)
    return {is_store: FileLane(driver, mover, buffers, is_store) for is_store in (True, False)}


class _Way:
    """An object on its way, with its stream and what the kernels need."""

    def __init__(
        self, driver: Driver, mover: FileMover, buffers: ObjectBuffers, is_store: bool
    ) -> None:
        self._driver, self._mover, self._buffers = driver, mover, buffers
        self._is_store = is_store
        self._stream, self._event = driver.new_stream(), driver.new_event()
        self._table = KernelTable(driver)
        self._work: Iterator[None] = iter(())
        self.transfer: Transfer[ObjectRuns] | None = None

    def begin(self, transfer: Transfer[ObjectRuns], portion: ObjectRuns) -> None:
        self.transfer = transfer
        transfer.in_flight += 1
        self._work = self._move(transfer, portion)

    def poll(self) -> Transfer[ObjectRuns] | None:
        transfer = self.transfer
        if transfer is None:
            return None
        try:
            for _ in self._work:
                return None
        except (CannotMove, MoveFailed) as error:
            if transfer.error is None:
                transfer.file_failed = True
                transfer.stop(str(error))
        self.transfer = None
        transfer.in_flight -= 1
        return transfer

    def _move(self, transfer: Transfer[ObjectRuns], portion: ObjectRuns) -> Iterator[None]:
        """Yields while it waits. Raises CannotMove and MoveFailed."""
        stages = self._store if self._is_store else self._load
        buffer = yield from self._buffers.wait(portion.file.size)
        try:
            yield from stages(transfer, portion, buffer)
        except MoveFailed:
            raise  # and the buffer is never used again: the copy may still be at it
        except CannotMove:
            self._buffers.give_back(buffer)
            raise
        self._buffers.give_back(buffer)

    def _load(
        self, transfer: Transfer[ObjectRuns], portion: ObjectRuns, buffer: Buffer
    ) -> Iterator[None]:
        yield from self._copy_file(portion.file, buffer)
        yield from self._sum(portion.file.size, buffer)
        if digest(self._table.sums(), portion.file.size) != portion.file.digest:
            raise CannotMove(f"{portion.file.path}: not the bytes that were stored")
        yield from self._copy_runs(transfer, portion.runs, buffer)

    def _store(
        self, transfer: Transfer[ObjectRuns], portion: ObjectRuns, buffer: Buffer
    ) -> Iterator[None]:
        yield from self._copy_runs(transfer, portion.runs, buffer)
        if transfer.error is not None:
            return
        yield from self._sum(portion.file.size, buffer)
        transfer.digests[portion.nth] = digest(self._table.sums(), portion.file.size)
        yield from self._copy_file(portion.file, buffer)

    def _copy_file(self, file: FileObject, buffer: Buffer) -> Iterator[None]:
        copy = self._mover.begin(file.path, file.offset, file.size, buffer.address, self._is_store)
        yield from _until(
            copy.is_done, "a write to a file" if self._is_store else "a read from a file"
        )

    def _sum(self, size: int, buffer: Buffer) -> Iterator[None]:
        yield from self._on_gpu(lambda: self._table.sum_object(buffer.address, size, self._stream))

    def _copy_runs(
        self, transfer: Transfer[ObjectRuns], runs: Runs, buffer: Buffer
    ) -> Iterator[None]:
        """Between the blocks and the buffer, until the worker has left."""
        for at in range(0, len(runs), STEP_RUNS):
            if transfer.error is not None:
                return
            part = runs.take(slice(at, at + STEP_RUNS))
            places = buffer.address + part.offset
            ends = (places, part.device) if self._is_store else (part.device, places)
            yield from self._on_gpu(partial(self._table.copy_runs, *ends, part.size, self._stream))

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
            raise CannotMove(str(failure))


def _until(is_done: Callable[[], bool], what: str) -> Iterator[None]:
    """Raises Stuck."""
    began = time.monotonic()
    while not is_done():
        if time.monotonic() - began > lane.STEP_SECONDS:
            raise Stuck(f"{what} did not end in {lane.STEP_SECONDS:.0f} s")
        yield
