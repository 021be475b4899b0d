"""Objects that a GPU reads from their files itself, past the L1.

A lookup reads their headers only. Then they are held by leases, as objects of the L1 are, and
their backend does not evict them until the retrieve.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, Space, State
from sidecar.cache.holds import Holds
from sidecar.cache.keys import SpaceKey
from sidecar.flow import Cancelled, Flow, Flows, Gate, ended
from sidecar.gds.file_entry import FileEntry, StoredFile, file_entry
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import Span
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.backend import Backend
from sidecar.tiers.base import TierError
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import HEADER_BYTES, Header, read_header

_REMEMBERED = 10_000
# What the GPU's checksum can do.
_WORD, _SHORT = 8, 240


@dataclass(eq=False, slots=True)
class _Read:
    """An object of `backend`, whose header is being read, or is known. `parent` is the lookup's.

    `outdated`: something else was stored meanwhile, so what was read says nothing of it.
    """

    entry: FileEntry
    name: ObjectName
    backend: Backend
    parent: Span
    outdated: bool = False
    flow: Flow[None] = field(init=False)


class FileReads(Holds):
    """All of them, by space and chunk hash: a `Source` of lookups. Loop thread only."""

    def __init__(
        self, files: Mapping[Backend, MovedFiles], telemetry: Telemetry, flows: Flows
    ) -> None:
        super().__init__()
        self._files, self._telemetry, self._flows = files, telemetry, flows
        self._reads: dict[tuple[SpaceKey, bytes], _Read] = {}
        self._gates = {backend: Gate(backend.read_slots) for backend in files}
        # What a GPU could not read, or found to be bad, and what a fuller object may have to
        # replace: in the L1 it is seen which of these it is.
        self._through_l1: OrderedDict[ObjectName, None] = OrderedDict()

    def allows(self, backend: Backend, name: ObjectName, size: int) -> bool:
        """Whether the object of `size` bytes can be read in this way."""
        fits = size % _WORD == 0 and size > _SHORT
        return backend in self._files and fits and name not in self._through_l1

    def find(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object for one more lookup: if it is held, or its header is on its way."""
        read = self._reads.get((space, chunk_hash))
        if read is None or read.entry.failed:
            return None
        if read.name in self._through_l1 or read.name not in read.backend.catalog:
            return None
        # Of a backend that is cut off nobody knows when it answers.
        answers = read.entry.state is State.READY or read.backend.reads.allows()
        return read.entry if answers else None

    def begin(
        self, space: SpaceKey, name: ObjectName, size: int, backend: Backend, span: Span
    ) -> Entry | None:
        """Have the header of an object read that `find` does not know."""
        if (space, name.hash) in self._reads or not self.allows(backend, name, size):
            return None
        self._telemetry.l2_prefetch_load_submitted_objects_chunks.add(1, backend.label)
        entry = file_entry(Space(self, space), name.hash, size)
        read = self._reads[space, name.hash] = _Read(entry, name, backend, span)
        read.flow = self._flows.start(self._read(read))
        return entry

    def busy(self, backend: Backend) -> set[ObjectName]:
        """What must not be evicted from a backend now."""
        return {read.name for read in self._reads.values() if read.backend is backend}

    def kept(self, backend: Backend, name: ObjectName) -> None:
        """Something was stored under `name`."""
        self._through_l1.pop(name, None)
        for read in self._reads.values():
            read.outdated = read.outdated or (read.backend, read.name) == (backend, name)

    def loaded(self, name: ObjectName) -> None:
        """The object has come into the L1 and was good."""
        self._through_l1.pop(name, None)

    def forget_all(self) -> None:
        """The cache has been cleared. A copy that is under way goes on."""
        for read in list(self._reads.values()):
            if read.entry.state is State.READY:
                self._drop(read)
            else:
                read.flow.stop("the cache has been cleared")

    def unpin(self, entry: Entry) -> None:
        """A GPU is through with it, or could not read it."""
        read = self._reads.get((entry.space.key, entry.hash))
        if read is not None and read.entry is entry:
            if read.entry.failed:
                model = entry.space.key.model_name
                self._telemetry.l2_prefetch_failure_chunks.add(1, "gpu_read", model)
                self._avoid(read.name)
            else:
                label = read.backend.label
                self._telemetry.l2_prefetch_load_completed_chunks.add(1, label)
                self._telemetry.l2_transfer_bytes.add(entry.size, "load", label)
        super().unpin(entry)

    async def _read(self, read: _Read) -> None:
        """Read the header of an object that a lookup waits for, and publish it."""
        entry, backend = read.entry, read.backend
        try:
            await self._flows.turn()  # the lookup that wants it has its lease then
            async with self._gates[backend]:
                if entry.leases and backend.reads.allows():
                    await self._read_header(read)
        except Cancelled:
            pass
        finally:
            if entry.state is State.WRITING:
                self._give_up(read)

    async def _read_header(self, read: _Read) -> None:
        entry, backend, name = read.entry, read.backend, read.name
        call = read.parent.child("l2_peek", l2_name=backend.label)
        files, whole, epoch = (
            self._files[backend],
            HEADER_BYTES + aligned(entry.size),
            backend.epoch,
        )

        def work() -> tuple[str, Header]:
            path, head = files.peek(epoch.tagged(name), whole)
            return path, read_header(head, entry.space.key, entry.hash, entry.size)

        reading = backend.reading(work, on_late=lambda: read.flow.cancel("timeout"))
        try:
            path, header = await reading
        except Cancelled as cancelled:
            call.end(cancelled.reason)
            self._give_up(read)  # who waits for it need not wait for the thread
            await ended(reading)
            raise
        except TierError as error:
            call.end(str(error))
            if not read.outdated:
                backend.lost(name, error)
            return
        call.end("")
        if header.missing:
            # A store of a fuller one takes the place of what it finds in the L1.
            self._avoid(name)
        elif entry.leases:
            entry.file = StoredFile(path, HEADER_BYTES, header.digest)
            entry.step("publish")
            backend.catalog.touch(name)
            entry.settle()

    def _give_up(self, read: _Read) -> None:
        self._forget(read)
        read.entry.step("abort")
        read.entry.settle()

    def _drop(self, read: _Read) -> None:
        """It is not found any more; who copies it goes on."""
        self._forget(read)
        read.entry.step("drop pinned" if read.entry.pins else "drop")

    def _forget(self, read: _Read) -> None:
        key = read.entry.space.key, read.entry.hash
        if self._reads.get(key) is read:
            del self._reads[key]

    def _avoid(self, name: ObjectName) -> None:
        self._through_l1[name] = None
        while len(self._through_l1) > _REMEMBERED:
            self._through_l1.popitem(last=False)

    def _held_now(self, entry: Entry) -> None:
        pass

    def _unheld_now(self, entry: Entry) -> None:
        """Its file may go."""
        read = self._reads.get((entry.space.key, entry.hash))
        if read is not None and read.entry is entry:
            self._drop(read)
        else:
            entry.step("drop")

    def _free(self, entry: Entry) -> None:
        pass
