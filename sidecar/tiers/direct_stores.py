"""Objects that GPUs write to files themselves, past the L1.

A file is made, the GPU's process fills it, and then it gets its header and its name: it is
found when it is complete, and not before. Until then this is the one who changes its name.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sidecar.cache.arena import aligned
from sidecar.cache.keys import SpaceKey
from sidecar.gds.entry import FileEntry, StoredFile, file_entry
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.base import NoSpace, TierError
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.lane import Lane
from sidecar.tiers.loads import Loads
from sidecar.tiers.names import ObjectName, object_name
from sidecar.tiers.record import HEADER_BYTES, Header, write_header
from sidecar.tiers.writing import Batch, check_room, give_way, kept, make_room, not_kept

_AGAIN_SECONDS = 60.0  # after which GPUs are asked again when one could not write


@dataclass(eq=False, slots=True)
class _Store:
    """An object on its way to `lane`, where it takes `size` bytes. `batch`: its request's."""

    entry: FileEntry
    name: ObjectName
    lane: Lane
    size: int
    epoch: Epoch
    batch: Batch = field(init=False)
    span: Span = NO_SPAN


class _Making:
    """The files of one request that are still being made; `then` is called when none is."""

    def __init__(self, waiting: set[_Store], then: Callable[[], None]) -> None:
        self.waiting, self._then = waiting, then
        self._gave_way = False

    def made(self, store: _Store) -> None:
        """Its file is there, or cannot be made."""
        if store in self.waiting:
            self.waiting.discard(store)
            if not self.waiting:
                self._then()

    def expire(self) -> None:
        """Who has none by now goes without."""
        if self.waiting:
            self.waiting.clear()
            self._then()

    def gives_way(self) -> bool:
        """True once: the files of a request fail together for want of room."""
        first, self._gave_way = not self._gave_way, True
        return first


class DirectStores:
    """All of them. Loop thread only.

    `lane` is where they go; None: everything is stored through the L1. `later(seconds, fn)` is a
    timer: workers wait for no disk for longer than the adapter's timeout, also where all
    threads are stuck and a call never begins.
    """

    def __init__(
        self, lane: Lane | None, loads: Loads, telemetry: Telemetry,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:  # fmt: skip
        self._lane, self._loads, self._telemetry, self._later = lane, loads, telemetry, later
        self._stores: dict[ObjectName, _Store] = {}
        self._off_until = 0.0

    def __len__(self) -> int:
        return len(self._stores)

    def in_flight(self, lane: Lane) -> int:
        """Objects on their way to `lane`."""
        return len(self) if lane is self._lane else 0

    def claim(
        self, space: SpaceKey, chunk_hash: bytes, size: int
    ) -> tuple[FileEntry | None, bool] | None:
        """An object to store, for `prepare`: (entry, True); or who stores it already:
        (entry, False); (None, False) if it is in its file. None: it has to go through the L1.
        """
        name = object_name(space, chunk_hash)
        lane, store = self._lane, self._stores.get(name)
        if lane is None or not self._allows(lane, name, size):
            return None
        if store is not None:
            # What was begun before everything was cleared goes with that.
            return (store.entry, False) if store.epoch is lane.epoch else None
        if name in lane.catalog and name not in lane.catalog.suspects:
            lane.catalog.touch(name)
            return None, False
        entry = file_entry(space, chunk_hash, size)
        return (entry, True) if self._begin(lane, name, entry) else None

    def prepare(self, entries: Sequence[FileEntry], span: Span, then: Callable[[], None]) -> None:
        """Make the files, then call back: those without `file` cannot be stored this way.

        `span` is of the request that brought them, at least one.
        """
        stores = [self._of(entry) for entry in entries]
        making, batch = _Making(set(stores), then), Batch(stores[0].lane, len(stores))
        batch.names = [store.name for store in stores]
        batch.begin_all()
        for store in stores:
            store.batch = batch
            store.span = span.child("l2_store", l2_name=store.lane.label, bytes=store.size)
            self._make_file(store, making)
        self._in_time(making.expire)

    def publish(self, entries: Sequence[FileEntry]) -> None:
        """GPUs have written these. Each settles when it is there, and when that takes too long."""

        def expire() -> None:
            for entry in entries:
                entry.settle()

        for entry in entries:
            self._publish(self._of(entry))
        if entries:
            self._in_time(expire)

    def give_up(self, entries: Iterable[FileEntry]) -> None:
        """These do not become objects; only a GPU that failed may still write to their files."""
        for entry in entries:
            store = self._of(entry)
            if entry.file is None:
                self._end(store, "no file")
                continue
            _discard(store.lane, entry.file.path)
            if entry.failed:
                self._off_until = time.monotonic() + _AGAIN_SECONDS
            self._drop(store, "gpu_write" if entry.failed else "aborted")

    def _allows(self, lane: Lane, name: ObjectName, size: int) -> bool:
        """Whether it may go this way, for all that is known now."""
        if time.monotonic() < self._off_until or not lane.counted:
            return False
        works = lane.writes.allows() and lane.reads.allows()
        return works and self._loads.direct.allows(lane, name, size)

    def _begin(self, lane: Lane, name: ObjectName, entry: FileEntry) -> bool:
        """False if there is no room, or somebody else is changing what is under this name."""
        size = HEADER_BYTES + aligned(entry.size)
        if not lane.removal.begin_change(name):
            return False
        if not make_room(lane, size):
            lane.removal.end_change(name)
            return False
        lane.catalog.reserved += size
        self._stores[name] = _Store(entry, name, lane, size, lane.epoch)
        return True

    def _of(self, entry: FileEntry) -> _Store:
        return self._stores[object_name(entry.space.key, entry.hash)]

    def _in_time(self, callback: Callable[[], None]) -> None:
        assert self._lane is not None
        self._later(self._lane.settings.timeout_seconds, callback)

    def _make_file(self, store: _Store, making: "_Making") -> None:
        lane, size, files = store.lane, store.size, _files(store.lane)

        def work() -> str:
            check_room(lane, size)
            return files.new_file(size)

        def done(path: str, error: TierError | None) -> None:
            if isinstance(error, NoSpace) and making.gives_way():
                give_way(lane, size)
            if error is None and store in making.waiting:
                store.entry.file = StoredFile(path, HEADER_BYTES, b"")
                self._telemetry.l2_store_submitted_objects_chunks.add(1, lane.label)
            elif error is None:
                _discard(lane, path)
            making.made(store)

        lane.write(work, done)

    def _publish(self, store: _Store) -> None:
        entry, lane, files = store.entry, store.lane, _files(store.lane)
        assert entry.file is not None
        path, header = entry.file.path, Header(entry.file.digest, entry.missing)
        head = write_header(header, entry.space.key, entry.hash, entry.size)

        def work() -> None:
            files.keep(path, head, store.epoch.tagged(store.name))

        def done(_: None, error: TierError | None) -> None:
            if error is None:
                self._kept(store)
            else:
                _discard(lane, path)  # where that was not even begun
                self._drop(store, not_kept(lane, store.size, error))

        lane.write(work, done)

    def _kept(self, store: _Store) -> None:
        lane = store.lane
        if not kept(lane, self._loads, store.name, store.size, store.epoch):
            self._drop(store, "cleared")
            return
        self._telemetry.l2_store_completed_objects_chunks.add(1, lane.label)
        self._telemetry.l2_transfer_bytes.add(store.size, "store", lane.label)
        self._end(store, "")

    def _drop(self, store: _Store, reason: str) -> None:
        self._telemetry.l2_dropped_objects.add(1, store.lane.label, reason)
        self._end(store, reason)

    def _end(self, store: _Store, error: str) -> None:
        del self._stores[store.name]
        store.batch.end_one()
        store.span.end(error)
        store.lane.catalog.reserved -= store.size
        store.lane.removal.end_change(store.name)
        store.entry.step("abort")
        store.entry.settle()


def _files(lane: Lane) -> Files:
    assert lane.files is not None
    return lane.files


def _discard(lane: Lane, path: str) -> None:
    files = _files(lane)
    lane.write(lambda: files.discard(path), lambda _, error: None)
