"""From the L1 into the backends, behind the requests' backs.

What waits is pinned, so its bytes stay what they were; so the queue is bounded, and drops the
newest when it is full.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, State
from sidecar.cache.l1 import L1
from sidecar.flow import Flows
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import Bytes, TierError
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.manners import Manners
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import seal
from sidecar.tiers.writing import Batch, check_room, kept, make_room, not_kept

_LOOK_AGAIN_SECONDS = 0.01


@dataclass(eq=False, slots=True)
class _Write:
    """An object that waits to be written, or is being written, to one backend."""

    entry: Entry
    name: ObjectName
    batch: Batch
    since: float
    epoch: Epoch
    span: Span

    @property
    def bytes(self) -> int:
        return self.entry.slot_bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait, over all backends."""

    bytes: int
    objects: int


class WriteBehind:
    """The queues of all backends. Loop thread only.

    `manners` say when; `on_kept(entry)` is called when a backend has kept the entry and has let
    go of it.
    """

    def __init__(
        self, l1: L1, arena: Bytes, backends: Sequence[Backend], telemetry: Telemetry,
        bounds: Bounds, manners: Manners, flows: Flows, on_kept: Callable[[Entry], None],
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._arena = arena
        self._telemetry = telemetry
        self._bounds = bounds
        self.manners = manners
        self._flows = flows
        self._on_kept = on_kept
        self._waiting: dict[Backend, deque[_Write]] = {backend: deque() for backend in backends}
        self._writing = dict.fromkeys(backends, 0)  # how many
        self._queued: dict[Backend, dict[ObjectName, _Write]] = {
            backend: {} for backend in backends
        }
        self._looks_again = False
        self._pumping = False
        self.bytes = 0
        self.objects = 0

    def offer(
        self, objects: Iterable[tuple[Entry, ObjectName]], backend: Backend, span: Span = NO_SPAN
    ) -> None:
        """Have these written to `backend` in this order, but for what is there, or cannot be now.

        `span` is of the request that brought them.
        """
        batch = Batch(backend)
        for entry, name in objects:
            batch.names.append(name)
            is_kept = name in backend.catalog and name not in backend.catalog.suspects
            if not is_kept and not self._is_queued(backend, name):
                now = time.monotonic()
                self._enqueue(backend, _Write(entry, name, batch, now, backend.epoch, span))
        batch.begin_all()

    def _is_queued(self, backend: Backend, name: ObjectName) -> bool:
        """What was queued before everything was cleared does not count: it is dropped."""
        write = self._queued[backend].get(name)
        return write is not None and write.epoch is backend.epoch

    def _enqueue(self, backend: Backend, write: _Write) -> None:
        reason = self._why_not(backend, write.bytes)
        if reason is not None:
            self._telemetry.l2_dropped_objects.add(1, backend.label, reason)
            return
        self._l1.pin(write.entry)
        self.bytes += write.bytes
        self.objects += 1
        write.batch.left += 1
        self._queued[backend][write.name] = write
        self._waiting[backend].append(write)
        self._telemetry.l2_store_submitted_objects_chunks.add(1, backend.label)

    def pump(self) -> None:
        """Hand to the threads what they can take."""
        if self._pumping:
            return  # a write that ends at once, and there may be thousands: in turn, not in depth
        self._pumping = True
        try:
            for backend, waiting in self._waiting.items():
                self._pump(backend, waiting)
        finally:
            self._pumping = False

    def _pump(self, backend: Backend, waiting: deque[_Write]) -> None:
        while waiting and not backend.writes.allows():
            self._drop(backend, waiting.popleft(), "breaker")
        while backend.counted and waiting and self._writing[backend] < backend.write_slots:
            if not self.manners.allow(waiting[0].since, self._writing[backend]):
                self._flows.start(self._look_again_later())
                break
            self._flows.start(self._write(backend, waiting.popleft()))

    def in_flight(self, backend: Backend) -> int:
        """Objects being written to a backend now."""
        return self._writing[backend]

    def waiting_seconds(self, backend: Backend) -> float:
        """For how long the first in the queue of a backend has waited. Any thread."""
        try:
            return time.monotonic() - self._waiting[backend][0].since
        except IndexError:
            return 0.0

    def waiting(self, backend: Backend) -> int:
        """Objects that wait to be written to a backend."""
        return len(self._waiting[backend])

    def _why_not(self, backend: Backend, size: int) -> str | None:
        if not backend.writes.allows():
            return "breaker"
        full = self.objects >= self._bounds.objects or self.bytes + size > self._bounds.bytes
        return "queue_full" if full else None

    async def _look_again_later(self) -> None:
        if not self._looks_again:
            self._looks_again = True
            await self._flows.sleep(_LOOK_AGAIN_SECONDS)
            self._looks_again = False
            self.pump()

    async def _write(self, backend: Backend, write: _Write) -> None:
        """An object whose turn it is: written, or dropped for some reason; and let go of."""
        self._writing[backend] += 1
        try:
            reason = await self._changed(backend, write)
        finally:
            self._writing[backend] -= 1
        if reason:
            self._drop(backend, write, reason)
        else:
            self._telemetry.l2_store_completed_objects_chunks.add(1, backend.label)
            self._release(backend, write)
            self._on_kept(write.entry)
        self.pump()

    async def _changed(self, backend: Backend, write: _Write) -> str:
        """Write it when nobody else changes what is under its name; why not, "" if it was kept."""
        await backend.removal.wait_to_change(write.name)
        try:
            if not backend.writes.allows():
                return "breaker"
            if write.entry.state is not State.READY or write.epoch is not backend.epoch:
                return "cleared"
            if not make_room(backend, write.name, write.bytes):
                return "capacity"
            return await self._stored(backend, write)
        finally:
            backend.removal.end_change(write.name)

    async def _stored(self, backend: Backend, write: _Write) -> str:
        began, entry, size = time.monotonic(), write.entry, write.bytes
        record = self._arena[entry.start : entry.end]
        span = write.span.child(
            "l2_store", l2_name=backend.label, bytes=size, waited_seconds=began - write.since
        )
        # Whose absence only the backend knows. What is to go, or is bad, does not count.
        is_suspect = write.name in backend.catalog.suspects or backend.catalog.is_leaving(
            write.name
        )
        ask_first = backend.adapter.shared and not is_suspect

        def work() -> bool:
            if ask_first and write.epoch.find([write.name]) != [None]:
                return False  # somebody else has stored it
            check_room(backend, size)
            if not entry.sealed:
                _seal(record, entry)
            write.epoch.store(write.name, record)
            return True

        backend.catalog.reserved += size
        try:
            is_new = await backend.writing(work)
        except TierError as error:
            span.end(str(error))
            return not_kept(backend, size, error)
        finally:
            backend.catalog.reserved -= size
            seconds = time.monotonic() - began
            self.manners.written(seconds)
        span.end("")
        entry.sealed = entry.sealed or is_new
        if not kept(backend, write.name, size, write.epoch):
            return "cleared"
        if is_new:
            rate = size / max(seconds, 1e-9) / 1e9
            self._telemetry.l2_store_throughput.record(rate, backend.label)
            self._telemetry.l2_transfer_bytes.add(size, "store", backend.label)
        return ""

    def _drop(self, backend: Backend, write: _Write, reason: str) -> None:
        self._telemetry.l2_dropped_objects.add(1, backend.label, reason)
        self._release(backend, write)

    def _release(self, backend: Backend, write: _Write) -> None:
        self.bytes -= write.bytes
        self.objects -= 1
        if self._queued[backend].get(write.name) is write:
            del self._queued[backend][write.name]
        self._l1.unpin(write.entry)
        write.batch.end_one()


def _seal(record: Bytes, entry: Entry) -> None:
    # What lay behind the object before may be another tenant's.
    record[len(record) - aligned(entry.size) + entry.size :] = 0
    seal(record, entry.space.key, entry.hash, entry.size, entry.missing)
