"""L2 as the rest of the server sees it: what was stored goes down, what is asked for comes up."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sidecar.cache.changes import Changes
from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.flow import Flows
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import AdapterUnusable, Bytes
from sidecar.tiers.bypass import Bypass
from sidecar.tiers.clearing import Cleared, delete, when_cleared
from sidecar.tiers.known_epochs import KnownEpochs
from sidecar.tiers.loads import Loads
from sidecar.tiers.manners import Manners
from sidecar.tiers.names import ObjectName, object_name
from sidecar.tiers.prefetch import Prefetches
from sidecar.tiers.reuse import Reuse, is_hot
from sidecar.tiers.settings import AdapterSettings
from sidecar.tiers.write_behind import Bounds, WriteBehind

log = logging.getLogger(__name__)
_STOP_SECONDS = 1.0
_STOP_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class TierOptions:
    """What the flags say of L2 as a whole; see their help texts."""

    skip_l1: bool
    reused: bool
    retain: bool
    max_in_flight: int
    timeout_seconds: float
    queue_ratio: float
    queue_objects: int = 65_536  # what waits takes some memory beside the L1, too


@dataclass(frozen=True, slots=True)
class ServerHooks:
    """What L2 needs of the server.

    `busy()` tells that workers' transfers are under way, `busy_share()` for how much of the
    time lately.
    """

    post: Callable[[Callable[[], None]], None]
    later: Callable[[float, Callable[[], None]], None]
    flows: Flows
    busy: Callable[[], bool]
    busy_share: Callable[[], float]


class Tiers:
    """The adapters in their order, and the traffic between them and the L1. Loop thread only.

    Without adapters it does nothing, and costs nothing. `bypass` is what goes past the L1, if
    anything does.
    """

    def __init__(
        self, settings: Sequence[AdapterSettings], policy: TierOptions, l1: L1, arena: Bytes,
        leases: Leases, telemetry: Telemetry, around: ServerHooks,
    ) -> None:  # fmt: skip
        """Open all adapters. Raises AdapterUnusable for the first that cannot be."""
        self._l1 = l1
        self._telemetry = telemetry
        self._policy = policy
        self._later = around.later
        self.bypass: Bypass | None = None
        self._reuse = Reuse() if policy.reused else None
        self.backends = _open(settings, arena, around, telemetry, l1.changes)
        self.epochs = KnownEpochs(self.backends, l1, self._replaced)
        self.loads = Loads(
            l1, arena, self.backends, telemetry, around.flows, not policy.retain, self._promote
        )
        bounds = Bounds(int(policy.queue_ratio * l1.capacity), policy.queue_objects)
        self.writes = WriteBehind(
            l1, arena, self.backends, telemetry, bounds,
            Manners(around.busy, around.busy_share), around.flows, self._kept,
        )  # fmt: skip
        self.prefetches = Prefetches(
            l1, leases, self.loads, self.backends, telemetry, around.later, around.flows,
            policy.timeout_seconds, policy.max_in_flight,
        )  # fmt: skip
        for backend in self.backends:
            backend.on_scanned = self.writes.pump
            backend.on_replaced = self._replaced
            backend.on_relocated = self._forget_all
            backend.on_kept = partial(self._kept_by, backend)
            backend.busy = partial(self._busy, backend)

    @property
    def skip_l1(self) -> bool:
        """Whether the L1 is not to keep what has been written down."""
        return self._policy.skip_l1

    def start(self) -> None:
        """Begin to find out what the backends have from before."""
        for backend in self.backends:
            if not backend.adapter.shared:
                backend.start_scan(time.monotonic())

    def stored(self, entries: Sequence[Entry], span: Span = NO_SPAN) -> None:
        """These were published just now, in the order of their sequence: write them down.

        But for those that wait until somebody comes back for them. `span` is of the request that
        brought them.
        """
        if self._reuse is not None:
            again = self._reuse.again(entries)
            self._telemetry.l2_store_deferred_chunks.add(len(entries) - len(again))
            entries = again
        self._write(entries, span)

    def used(self, space: SpaceKey, hashes: Sequence[bytes]) -> None:
        """A worker has used this sequence of the L1: what L2 lacks of it is worth writing now."""
        found = self._l1.space(space) if self._reuse is not None and self.backends else None
        if found is not None:
            entries = (found.ready.get(chunk_hash) for chunk_hash in hashes)
            self._write(
                [entry for entry in entries if entry is not None and is_hot(entry)], NO_SPAN
            )

    def _write(self, entries: Sequence[Entry], span: Span) -> None:
        if self.backends and entries:
            objects = [(entry, object_name(entry.space.key, entry.hash)) for entry in entries]
            for backend in self.backends:
                self.writes.offer(objects, backend, span)
            self.writes.pump()

    def superseded(self, space: SpaceKey, chunk_hash: bytes) -> None:
        """A fuller object takes the place of this one: it is to be written where that was."""
        for backend in self.backends:
            backend.catalog.distrust(object_name(space, chunk_hash))

    def clear(self, then: Callable[[list[Cleared]], None] = lambda cleared: None) -> None:
        """Nothing that was stored before now is found any more, by anybody.

        `then` is told what came of it, in seconds at the most.
        """
        for backend in self.backends:
            backend.clear()
        # After the backends: a lookup that gives up a load lets the next one begin.
        self._forget_all()
        when_cleared(self.backends, self._later, then)

    def delete(
        self, backend: Backend, names: Sequence[ObjectName], then: Callable[[tuple[int, int]], None]
    ) -> None:
        """Remove what a backend has of these; `then(deleted, left)` in seconds at the most."""

        def found() -> None:
            delete(backend, names, self._later, then)

        if backend.must_ask and names:
            backend.find(names, found)
        else:
            found()

    def tick(self) -> None:
        """Once a second."""
        now = time.monotonic()
        for backend in self.backends:
            backend.tick(now)
        self.epochs.tick()
        self.loads.drop_unwanted()
        self.writes.pump()

    def begin_stop(self) -> None:
        """Answer who waits; write what is queued without waiting for a pause any more."""
        self.prefetches.finish_all()
        self.writes.manners.patient = False
        self.writes.pump()

    @property
    def draining(self) -> bool:
        """Whether something is still being written that may yet come to its end."""
        stores = self.writes.objects or any(map(self.in_flight, self.backends))
        return bool(stores) and any(backend.writes.allows() for backend in self.backends)

    def close(self) -> None:
        """Let go of the backends, but for those in which a call is stuck."""
        for backend in self.backends:
            backend.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for backend in self.backends:
            while not backend.stopped() and time.monotonic() < deadline:
                time.sleep(_STOP_POLL_SECONDS)
            if backend.stopped():
                backend.adapter.close()
            else:
                log.warning("L2 %s has not answered: abandoned", backend.label)

    def in_flight(self, backend: Backend) -> int:
        """Objects being written to a backend now."""
        past_the_l1 = self.bypass.writing(backend) if self.bypass is not None else 0
        return self.writes.in_flight(backend) + past_the_l1

    def _replaced(self) -> None:
        """Others have cleared a backend: what came from there may be what they meant."""
        self._l1.clear(force=False)
        self._forget_all()

    def _forget_all(self) -> None:
        """What is on its way up is not wanted any more."""
        self.loads.forget_all()
        if self.bypass is not None:
            self.bypass.forget_all()

    def _busy(self, backend: Backend) -> set[ObjectName]:
        """What must not be evicted from a backend now."""
        busy = self.loads.busy(backend)
        return busy if self.bypass is None else busy | self.bypass.busy(backend)

    def _kept_by(self, backend: Backend, name: ObjectName) -> None:
        """A backend has stored something under `name`."""
        self.loads.replaced(backend, name)
        if self.bypass is not None:
            self.bypass.kept(backend, name)

    def _promote(self, entry: Entry, backend: Backend) -> None:
        """What came from far down is kept nearer from now on."""
        objects = [(entry, object_name(entry.space.key, entry.hash))]
        if self.bypass is not None:
            self.bypass.loaded(objects[0][1])
        for nearer in self.backends[: backend.index]:
            self.writes.offer(objects, nearer)
        self.writes.pump()

    def _kept(self, entry: Entry) -> None:
        if self._policy.skip_l1 and entry.evictable:
            self._l1.discard(entry)


def _open(
    settings: Sequence[AdapterSettings], arena: Bytes, around: ServerHooks, telemetry: Telemetry,
    changes: Changes,
) -> list[Backend]:  # fmt: skip
    backends: list[Backend] = []
    try:
        for index, label in enumerate(labels(settings)):
            adapter = settings[index].build()
            adapter.open(arena)
            backend = Backend(
                index, label, settings[index], adapter, around.post, telemetry, changes
            )
            backends.append(backend)
    except AdapterUnusable as error:
        for backend in backends:
            backend.adapter.close()
        raise AdapterUnusable(f"--l2-adapter {settings[len(backends)].type}: {error}") from None
    return backends


def labels(settings: Sequence[AdapterSettings]) -> list[str]:
    """The adapters' names in metrics; the second of a type has its place behind it.

    Of `module:Class` it is the class.
    """
    found: list[str] = []
    for number, each in enumerate(settings):
        label = each.name or each.type.rpartition(":")[2]
        found.append(f"{label}-{number}" if label in found else label)
    return found
