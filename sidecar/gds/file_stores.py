"""Objects that GPUs write to files themselves, past the L1.

A file is made, the GPU's process fills it, and then it gets its header and its name: it is
found when it is complete, and not before. Until then nobody else changes what is under its name.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Space
from sidecar.cache.keys import SpaceKey
from sidecar.flow import Flows, first
from sidecar.gds.file_entry import FileEntry, StoredFile, file_entry
from sidecar.gds.file_reads import FileReads
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import NoSpace, TierError
from sidecar.tiers.epochs import Epoch
from sidecar.tiers.names import ObjectName, object_name
from sidecar.tiers.record import HEADER_BYTES, Header, write_header
from sidecar.tiers.writing import Batch, check_room, give_way, kept, make_room, not_kept

_AGAIN_SECONDS = 60.0  # after which GPUs are asked again when one could not write


@dataclass(eq=False, slots=True)
class _Store:
    """An object on its way to its file, where it takes `size` bytes. `batch`: its request's."""

    entry: FileEntry
    name: ObjectName
    size: int
    epoch: Epoch
    batch: Batch = field(init=False)
    span: Span = NO_SPAN


@dataclass(slots=True)
class _Round:
    """The files of one request. `over`: the request does not wait for them any more; `gave_way`:
    the disk was full, and something older was given up for all of them."""

    over: bool = False
    gave_way: bool = False


class FileStores:
    """All stores into the files of `backend`. Loop thread only.

    Workers wait for no disk for longer than the adapter's timeout, also where all threads are
    stuck and a call never begins.
    """

    def __init__(
        self,
        backend: Backend,
        files: MovedFiles,
        reads: FileReads,
        telemetry: Telemetry,
        flows: Flows,
    ) -> None:
        self._backend, self._files, self._reads = backend, files, reads
        self._telemetry, self._flows = telemetry, flows
        self._stores: dict[ObjectName, _Store] = {}
        self._off_until = 0.0

    def __len__(self) -> int:
        return len(self._stores)

    def claim(
        self, space: SpaceKey, chunk_hash: bytes, size: int
    ) -> tuple[FileEntry | None, bool] | None:
        """An object to store, for `make_files`: (entry, True); or who stores it already:
        (entry, False); (None, False) if it is in its file. None: it has to go through the L1.
        """
        name, backend = object_name(space, chunk_hash), self._backend
        if not self._allows(name, size):
            return None
        if (store := self._stores.get(name)) is not None:
            # What was begun before everything was cleared goes with that.
            return (store.entry, False) if store.epoch is backend.epoch else None
        if name in backend.catalog and name not in backend.catalog.suspects:
            backend.catalog.touch(name)
            return None, False
        entry = file_entry(Space(self._reads, space), chunk_hash, size)
        return (entry, True) if self._begin(name, entry) else None

    async def make_files(self, entries: Sequence[FileEntry], span: Span) -> None:
        """Make the files: entries (at least one) without `file` cannot be stored this way.

        `span` is of the request that brought them.
        """
        stores, backend = [self._of(entry) for entry in entries], self._backend
        batch = Batch(backend, len(stores), [store.name for store in stores])
        batch.begin_all()
        for store in stores:
            store.batch = batch
            store.span = span.child("l2_store", l2_name=backend.label, bytes=store.size)
        this = _Round()
        made = [self._flows.start(self._make_file(store, this)) for store in stores]
        in_time = self._flows.sleep(backend.settings.timeout_seconds)
        for each in made:
            await first(each, in_time)
        this.over = True

    def publish(self, entries: Sequence[FileEntry]) -> None:
        """GPUs have written these. Each settles when it is there, and when that takes too long."""
        for entry in entries:
            self._flows.start(self._publish(self._of(entry), entry.file))
        if entries:
            self._flows.start(self._settle_in_time(entries))

    def give_up(self, entries: Iterable[FileEntry]) -> None:
        """These do not become objects; only a GPU that failed may still write to their files."""
        for entry in entries:
            store = self._of(entry)
            if entry.file is None:
                self._end(store, "no file")
                continue
            self._discard(entry.file.path)
            if entry.failed:
                self._off_until = time.monotonic() + _AGAIN_SECONDS
            self._drop(store, "gpu_write" if entry.failed else "aborted")

    def _allows(self, name: ObjectName, size: int) -> bool:
        """Whether it may go this way, for all that is known now."""
        backend = self._backend
        if time.monotonic() < self._off_until or not backend.counted:
            return False
        works = backend.writes.allows() and backend.reads.allows()
        return works and self._reads.allows(backend, name, size)

    def _begin(self, name: ObjectName, entry: FileEntry) -> bool:
        """False if there is no room, or somebody else is changing what is under this name."""
        backend, size = self._backend, HEADER_BYTES + aligned(entry.size)
        if not backend.removal.begin_change(name):
            return False
        if not make_room(backend, name, size):
            backend.removal.end_change(name)
            return False
        backend.catalog.reserved += size
        self._stores[name] = _Store(entry, name, size, backend.epoch)
        return True

    def _of(self, entry: FileEntry) -> _Store:
        return self._stores[object_name(entry.space.key, entry.hash)]

    async def _make_file(self, store: _Store, this: _Round) -> None:
        backend, files, size = self._backend, self._files, store.size

        def work() -> str:
            check_room(backend, size)
            return files.new_file(size)

        try:
            path = await backend.writing(work)
        except TierError as error:
            if isinstance(error, NoSpace) and not this.gave_way:
                this.gave_way = True
                give_way(backend, size)
            return
        if this.over:
            self._discard(path)
        else:
            store.entry.file = StoredFile(path, HEADER_BYTES, b"")
            self._telemetry.l2_store_submitted_objects_chunks.add(1, backend.label)

    async def _publish(self, store: _Store, file: StoredFile | None) -> None:
        """Give a file that a GPU has written its header and its name."""
        assert file is not None
        entry, backend, files = store.entry, self._backend, self._files
        header = Header(file.digest, entry.missing)
        head = write_header(header, entry.space.key, entry.hash, entry.size)
        try:
            await backend.writing(
                lambda: files.keep(file.path, head, store.epoch.tagged(store.name))
            )
        except TierError as error:
            self._discard(file.path)  # where that was not even begun
            self._drop(store, not_kept(backend, store.size, error))
            return
        if not kept(backend, store.name, store.size, store.epoch):
            self._drop(store, "cleared")
            return
        self._telemetry.l2_store_completed_objects_chunks.add(1, backend.label)
        self._telemetry.l2_transfer_bytes.add(store.size, "store", backend.label)
        self._end(store, "")

    async def _settle_in_time(self, entries: Sequence[FileEntry]) -> None:
        await self._flows.sleep(self._backend.settings.timeout_seconds)
        for entry in entries:
            entry.settle()

    def _drop(self, store: _Store, reason: str) -> None:
        self._telemetry.l2_dropped_objects.add(1, self._backend.label, reason)
        self._end(store, reason)

    def _end(self, store: _Store, error: str) -> None:
        del self._stores[store.name]
        store.batch.end_one()
        store.span.end(error)
        self._backend.catalog.reserved -= store.size
        self._backend.removal.end_change(store.name)
        store.entry.step("abort")
        store.entry.settle()

    def _discard(self, path: str) -> None:
        self._backend.write(lambda: self._files.discard(path), lambda _, error: None)
