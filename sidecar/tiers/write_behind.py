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
from sidecar.tiers.base import Bytes, TierError
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.lane import Lane
from sidecar.tiers.manners import Manners
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import seal
from sidecar.tiers.writing import Batch, check_room, kept, make_room, not_kept

_LOOK_AGAIN_SECONDS = 0.01


@dataclass(eq=False, slots=True)
class _Write:
    """An object that waits to be written, or is being written, to one lane."""

    entry: Entry
    name: ObjectName
    batch: Batch
    since: float
    epoch: Epoch
    span: Span

    @property
    def bytes(self) -> int:
        return self.entry.end - self.entry.start


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait, over all lanes."""

    bytes: int
    objects: int


class WriteBehind:
    """The queues of all lanes. Loop thread only.

    `manners` say when; `on_kept(entry)` is called when a lane has kept the entry and has let
    go of it.
    """

    def __init__(
        self, l1: L1, arena: Bytes, lanes: Sequence[Lane], telemetry: Telemetry, bounds: Bounds,
        manners: Manners, flows: Flows, on_kept: Callable[[Entry], None],
    ) -> None:  # fmt: skip
        self._l1 = l1
        self._arena = arena
        self._telemetry = telemetry
        self._bounds = bounds
        self.manners = manners
        self._flows = flows
        self._on_kept = on_kept
        self._waiting: dict[Lane, deque[_Write]] = {lane: deque() for lane in lanes}
        self._writing = dict.fromkeys(lanes, 0)  # how many
        self._queued: dict[Lane, dict[ObjectName, _Write]] = {lane: {} for lane in lanes}
        self._looks_again = False
        self._pumping = False
        self.bytes = 0
        self.objects = 0

    def offer(
        self, objects: Iterable[tuple[Entry, ObjectName]], lane: Lane, span: Span = NO_SPAN
    ) -> None:
        """Have these written to `lane` in this order, but for what is there, or cannot be now.

        `span` is of the request that brought them.
        """
        batch = Batch(lane)
        for entry, name in objects:
            batch.names.append(name)
            is_kept = name in lane.catalog and name not in lane.catalog.suspects
            if not is_kept and not self._is_queued(lane, name):
                now = time.monotonic()
                self._enqueue(lane, _Write(entry, name, batch, now, lane.epoch, span))
        batch.begin_all()

    def _is_queued(self, lane: Lane, name: ObjectName) -> bool:
        """What was queued before everything was cleared does not count: it is dropped."""
        write = self._queued[lane].get(name)
        return write is not None and write.epoch is lane.epoch

    def _enqueue(self, lane: Lane, write: _Write) -> None:
        reason = self._why_not(lane, write.bytes)
        if reason is not None:
            self._telemetry.l2_dropped_objects.add(1, lane.label, reason)
            return
        self._l1.pin(write.entry)
        self.bytes += write.bytes
        self.objects += 1
        write.batch.left += 1
        self._queued[lane][write.name] = write
        self._waiting[lane].append(write)
        self._telemetry.l2_store_submitted_objects_chunks.add(1, lane.label)

    def pump(self) -> None:
        """Hand to the threads what they can take."""
        if self._pumping:
            return  # a write that ends at once, and there may be thousands: in turn, not in depth
        self._pumping = True
        try:
            for lane, waiting in self._waiting.items():
                self._pump(lane, waiting)
        finally:
            self._pumping = False

    def _pump(self, lane: Lane, waiting: deque[_Write]) -> None:
        while waiting and not lane.writes.allows():
            self._drop(lane, waiting.popleft(), "breaker")
        while lane.counted and waiting and self._writing[lane] < lane.write_slots:
            if not self.manners.allow(waiting[0].since, self._writing[lane]):
                self._flows.start(self._look_again_later())
                break
            self._flows.start(self._write(lane, waiting.popleft()))

    def in_flight(self, lane: Lane) -> int:
        """Objects being written to a lane now."""
        return self._writing[lane]

    def waiting_seconds(self, lane: Lane) -> float:
        """For how long the first in the queue of a lane has waited. Any thread."""
        try:
            return time.monotonic() - self._waiting[lane][0].since
        except IndexError:
            return 0.0

    def waiting(self, lane: Lane) -> int:
        """Objects that wait to be written to a lane."""
        return len(self._waiting[lane])

    def _why_not(self, lane: Lane, size: int) -> str | None:
        if not lane.writes.allows():
            return "breaker"
        full = self.objects >= self._bounds.objects or self.bytes + size > self._bounds.bytes
        return "queue_full" if full else None

    async def _look_again_later(self) -> None:
        if not self._looks_again:
            self._looks_again = True
            await self._flows.sleep(_LOOK_AGAIN_SECONDS)
            self._looks_again = False
            self.pump()

    async def _write(self, lane: Lane, write: _Write) -> None:
        """An object whose turn it is: written, or dropped for some reason; and let go of."""
        self._writing[lane] += 1
        try:
            reason = await self._changed(lane, write)
        finally:
            self._writing[lane] -= 1
        if reason:
            self._drop(lane, write, reason)
        else:
            self._telemetry.l2_store_completed_objects_chunks.add(1, lane.label)
            self._release(lane, write)
            self._on_kept(write.entry)
        self.pump()

    async def _changed(self, lane: Lane, write: _Write) -> str:
        """Write it when nobody else changes what is under its name; why not, "" if it was kept."""
        await lane.removal.wait_to_change(write.name)
        try:
            if not lane.writes.allows():
                return "breaker"
            if write.entry.state is not State.READY or write.epoch is not lane.epoch:
                return "cleared"
            if not make_room(lane, write.bytes):
                return "capacity"
            return await self._stored(lane, write)
        finally:
            lane.removal.end_change(write.name)

    async def _stored(self, lane: Lane, write: _Write) -> str:
        began, entry, size = time.monotonic(), write.entry, write.bytes
        record = self._arena[entry.start : entry.end]
        span = write.span.child(
            "l2_store", l2_name=lane.label, bytes=size, waited_seconds=began - write.since
        )
        # Whose absence only the backend knows. What is to go, or is bad, does not count.
        is_suspect = write.name in lane.catalog.suspects or lane.catalog.is_leaving(write.name)
        ask_first = lane.adapter.shared and not is_suspect

        def work() -> bool:
            if ask_first and write.epoch.find([write.name]) != [None]:
                return False  # somebody else has stored it
            check_room(lane, size)
            if not entry.sealed:
                _seal(record, entry)
            write.epoch.store(write.name, record)
            return True

        lane.catalog.reserved += size
        try:
            is_new = await lane.writing(work)
        except TierError as error:
            span.end(str(error))
            return not_kept(lane, size, error)
        finally:
            lane.catalog.reserved -= size
            seconds = time.monotonic() - began
            self.manners.written(seconds)
        span.end("")
        entry.sealed = entry.sealed or is_new
        if not kept(lane, write.name, size, write.epoch):
            return "cleared"
        if is_new:
            rate = size / max(seconds, 1e-9) / 1e9
            self._telemetry.l2_store_throughput.record(rate, lane.label)
            self._telemetry.l2_transfer_bytes.add(size, "store", lane.label)
        return ""

    def _drop(self, lane: Lane, write: _Write, reason: str) -> None:
        self._telemetry.l2_dropped_objects.add(1, lane.label, reason)
        self._release(lane, write)

    def _release(self, lane: Lane, write: _Write) -> None:
        self.bytes -= write.bytes
        self.objects -= 1
        if self._queued[lane].get(write.name) is write:
            del self._queued[lane][write.name]
        self._l1.unpin(write.entry)
        write.batch.end_one()


def _seal(record: Bytes, entry: Entry) -> None:
    # What lay behind the object before may be another tenant's.
    record[len(record) - aligned(entry.size) + entry.size :] = 0
    seal(record, entry.space.key, entry.hash, entry.size, entry.missing)
