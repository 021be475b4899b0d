"""The child process of one GPU: maps workers' memory, copies, and answers over its pipe.

One thread uses the driver; another reads the pipe. Whatever makes it doubtful that copies do
what they should ends the process, and with it everything it had on the GPU: the server starts
another.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from sidecar.engines.cuda import protocol
from sidecar.engines.cuda.calibration import Calibration
from sidecar.engines.cuda.driver import Driver, DriverError
from sidecar.engines.cuda.events import BadEvent, Event, open_event, timeline_memory
from sidecar.engines.cuda.file_lane import FileLane, file_lanes
from sidecar.engines.cuda.file_mover import CannotMove, FileMover
from sidecar.engines.cuda.lane import Lane, Portion, Transfer, Turns
from sidecar.engines.cuda.mapped_worker import CannotMap, MappedWorker
from sidecar.engines.cuda.mappings import HandleInUse, Mappings
from sidecar.engines.cuda.pinning import PinnedArena
from sidecar.engines.cuda.protocol import (
    End,
    FilesOpened,
    Map,
    Mapped,
    Move,
    Moved,
    MoveFiles,
    OpenFiles,
    Ping,
    Pong,
    Populated,
    Unmap,
    Unmapped,
)

log = logging.getLogger(__name__)

# A step of the engine takes less. A worker that died before its event never signals it.
_EVENT_SECONDS = 30.0
_POLL_SECONDS = 50e-6
# A worker's predecessor is given up 5 s after its connection is gone, and then unmapped.
_HOLD_SECONDS, _HELD_POLL_SECONDS = 10.0, 0.1
# Older clients import an event with each answer. They get these in turn, so that none is imported
# again before the answers in between have been dealt with.
_SHARED_EVENTS = 64
_POLLED_A_TURN = 32  # copies must not wait for long while many events are looked at


@dataclass(eq=False, slots=True)
class _Waiting:
    """A transfer whose worker's event has not happened yet."""

    order: Move | MoveFiles
    event: Event
    since: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Raises DriverError if fatal: a worker's bad event must not cost the others."""
        try:
            self.event.close()
        except DriverError as error:
            if error.is_fatal:
                raise
            log.warning("a worker's event: %s", error)


class Child:
    """The work of the process. `run` returns when the server wants no more."""

    def __init__(self, driver: Driver, pipe: Connection, arena: PinnedArena) -> None:
        self._driver, self._pipe, self._arena = driver, pipe, arena
        self._mappings = Mappings(driver)
        self._lanes = {store: Lane(driver, arena, store) for store in (True, False)}
        self._calibration = Calibration(driver)
        self._files: dict[bool, FileLane] = {}
        self._mover: FileMover | None = None
        self._no_files: str | None = "files have not been opened"
        self._workers: dict[int, MappedWorker] = {}
        self._held: list[tuple[Map, float]] = []  # until their handles are free, or until a time
        self._waiting: deque[_Waiting] = deque()
        self._events: list[bytes] = []
        self._is_ending = False

    def run(self, inbox: "queue.SimpleQueue[protocol.ToChild]") -> None:
        """Take orders until End, and until the last worker's copies have ended.

        Raises DriverError and Stuck when the process must be replaced.
        """
        while not self._is_ending or self._workers:
            with suppress(queue.Empty):
                self._take(inbox.get(timeout=self._patience()))
            self._map_held()
            self._poll_events()
            for lane in self._all_lanes():
                for transfer in lane.advance():
                    self._finish(transfer)
            self._notice_failure()

    def _all_lanes(self) -> list[Lane | FileLane]:
        return [*self._lanes.values(), *self._files.values()]

    def _patience(self) -> float | None:
        """How long the loop may sleep until the next order."""
        if self._waiting or not all(lane.is_idle for lane in self._all_lanes()):
            return _POLL_SECONDS
        if self._held:
            return _HELD_POLL_SECONDS
        return 0.0 if self._calibration.advance() else self._arena.advance()

    def _take(self, order: protocol.ToChild) -> None:
        match order:
            case Map():
                self._held.append((order, time.monotonic() + _HOLD_SECONDS))
            case Unmap():
                self._leave(order.worker)
            case Move() | MoveFiles():
                self._begin(order)
            case OpenFiles():
                self._open_files(order)
            case Populated():
                self._arena.populated(order.pieces)
            case Ping():
                self._send(Pong(self._arena.pinned_bytes))
            case End():
                self._is_ending = True

    def _map_held(self) -> None:
        """Map what nobody else has mapped; what waits for that in vain is refused."""
        now, held = time.monotonic(), self._held
        self._held = []
        for order, until in held:
            handles = [allocation.handle for allocation in order.allocations]
            if now < until and not self._mappings.are_free(handles, order.instance):
                self._held.append((order, until))
            else:
                self._map(order)

    def _map(self, order: Map) -> None:
        try:
            self._workers[order.worker] = MappedWorker(order, self._mappings)
        except CannotMap as error:
            self._send(Mapped(order.worker, str(error)))
        else:
            events = self._shared_events() if order.imports_events else []
            self._send(Mapped(order.worker, None, events))

    def _shared_events(self) -> list[bytes]:
        """Events that have happened; none if the driver cannot share any."""
        try:
            while len(self._events) < _SHARED_EVENTS:
                self._events.append(self._driver.share_event())
        except DriverError as error:
            if error.is_fatal:
                raise
            log.warning("no event can be shared with older clients: %s", error)
        return self._events

    def _open_files(self, order: OpenFiles) -> None:
        try:
            mover = FileMover(order.backend, order.params)
            self._files = file_lanes(self._driver, mover)
        except (CannotMove, DriverError) as error:
            if isinstance(error, DriverError) and error.is_fatal:
                raise
            self._no_files = str(error)
        else:
            self._mover, self._no_files = mover, None
        self._send(FilesOpened(self._no_files))

    def _notice_failure(self) -> None:
        """Tell once. The lanes stay as they are: a copy of theirs may still be on its way."""
        failed = self._mover.failed if self._mover is not None else None
        if failed is not None and self._no_files is None:
            log.error("no more copies between files and GPU memory: %s", failed)
            self._no_files = failed
            self._send(FilesOpened(failed))

    def _begin(self, order: Move | MoveFiles) -> None:
        worker, memory = self._workers[order.worker], timeline_memory(order.event)
        try:
            event = open_event(order.event, self._driver, self._mappings, worker.instance)
            if memory is not None:
                worker.keep(memory)
        except (BadEvent, HandleInUse) as error:
            self._send(Moved(order.job, str(error), 0.0, 0.0))
        except DriverError as error:
            if error.is_fatal:
                raise
            self._send(Moved(order.job, f"the worker's event: {error}", 0.0, 0.0))
        else:
            worker.transfers += 1
            self._waiting.append(_Waiting(order, event))

    def _poll_events(self) -> None:
        now = time.monotonic()
        for _ in range(min(len(self._waiting), _POLLED_A_TURN)):
            waiting = self._waiting.popleft()
            try:
                done = waiting.event.is_done()
            except DriverError as error:
                if error.is_fatal:
                    raise
                self._give_up(waiting, f"the worker's event: {error}")
                continue
            if done:
                self._start(waiting)
            elif now - waiting.since > _EVENT_SECONDS:
                self._give_up(waiting, f"the event did not happen in {_EVENT_SECONDS:.0f} s")
            else:
                self._waiting.append(waiting)

    def _start(self, waiting: _Waiting) -> None:
        waiting.close()
        order, waited = waiting.order, time.monotonic() - waiting.since
        worker = self._workers[order.worker]
        if isinstance(order, Move):
            steps = worker.steps(order, self._calibration.short_bytes[order.is_store])
            self._queue(self._lanes[order.is_store], order, waited, steps)
        elif self._no_files is None:
            self._queue(self._files[order.is_store], order, waited, worker.objects(order))
        else:
            self._send(Moved(order.job, self._no_files, waited, 0.0, file_failed=True))
            self._ended(order.worker)

    def _queue(
        self,
        lane: Turns[Portion],
        order: Move | MoveFiles,
        waited: float,
        portions: Iterator[Portion],
    ) -> None:
        transfer = Transfer(order.job, order.worker, waited, portions)
        if transfer.next is not None:
            lane.add(transfer)
        else:
            self._finish(transfer)

    def _give_up(self, waiting: _Waiting, why: str) -> None:
        waiting.close()
        order = waiting.order
        self._send(Moved(order.job, why, time.monotonic() - waiting.since, 0.0))
        self._ended(order.worker)

    def _finish(self, transfer: Transfer[Any]) -> None:
        copied = time.monotonic() - transfer.began
        digests = [transfer.digests[nth] for nth in sorted(transfer.digests)]
        answer = Moved(
            transfer.job, transfer.error, transfer.waited, copied, transfer.file_failed, digests
        )
        self._send(answer)
        self._ended(transfer.worker)

    def _ended(self, worker: int) -> None:
        self._workers[worker].transfers -= 1
        self._unmap_if_left(worker)

    def _leave(self, worker: int) -> None:
        """The worker may use its blocks for something else: touch nothing more of them."""
        self._workers[worker].is_leaving = True
        left = [waiting for waiting in self._waiting if waiting.order.worker == worker]
        self._workers[worker].transfers += 1  # keep it mapped until all of this is done
        for waiting in left:
            self._waiting.remove(waiting)
            self._give_up(waiting, "the worker has left")
        for lane in self._all_lanes():
            for transfer in lane.drop(worker):
                self._finish(transfer)
        self._ended(worker)

    def _unmap_if_left(self, worker: int) -> None:
        mapped = self._workers[worker]
        if mapped.is_leaving and not mapped.transfers:
            del self._workers[worker]
            mapped.close()
            self._send(Unmapped(worker))

    def _send(self, answer: protocol.ToServer) -> None:
        protocol.send(self._pipe, answer)
