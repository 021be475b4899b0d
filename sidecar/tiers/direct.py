"""Objects that a GPU reads from their files itself, past the L1.

A lookup reads their headers only. Then they are held by leases, as objects of the L1 are, and
their lane does not evict them until the retrieve.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, Space, State, StoredFile
from sidecar.cache.keys import SpaceKey
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import Span
from sidecar.tiers.base import TierError
from sidecar.tiers.lane import Lane
from sidecar.tiers.names import ObjectName
from sidecar.tiers.record import HEADER_BYTES, Header, read_header

_REMEMBERED = 10_000
# What the GPU's checksum can do.
_WORD, _SHORT = 8, 240


@dataclass(eq=False, slots=True)
class _Read:
    """An object of `lane`, whose header is being read, or is known."""

    entry: Entry
    name: ObjectName
    lane: Lane


class DirectReads:
    """All of them, by space and chunk hash. Loop thread only."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._reads: dict[tuple[SpaceKey, bytes], _Read] = {}
        # What a GPU could not read, or found to be bad: the L1's way tells what it is.
        self._failed: OrderedDict[ObjectName, None] = OrderedDict()

    def allows(self, lane: Lane, name: ObjectName, size: int) -> bool:
        """Whether the object of `size` bytes can be read in this way."""
        fits = size % _WORD == 0 and size > _SHORT
        return lane.files is not None and fits and name not in self._failed

    def find(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object, if it is held, or its header is on its way."""
        read = self._reads.get((space, chunk_hash))
        if read is None or not _in_use(read.entry):
            return None
        # Of a backend that is cut off nobody knows when it answers.
        answers = read.entry.state is State.BELOW or read.lane.reads.allows()
        return read.entry if answers else None

    def ready(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object, if it was promised to somebody."""
        entry = self.find(space, chunk_hash)
        return entry if entry is not None and entry.state is State.BELOW else None

    def begin(self, space: SpaceKey, name: ObjectName, size: int, lane: Lane, span: Span) -> Entry:
        """Read the header of an object that `find` does not know."""
        entry = Entry(Space(space), name.hash, range(0), 0, size)
        entry.on_settled = []
        read = self._reads[space, name.hash] = _Read(entry, name, lane)
        call = span.child("l2_peek", l2_name=lane.label)
        files, whole = lane.files, HEADER_BYTES + aligned(size)
        assert files is not None
        self._telemetry.l2_prefetch_load_submitted_objects_chunks.add(1, lane.label)

        def work() -> tuple[str, Header]:
            path, head = files.peek(name, whole)
            return path, read_header(head, space, name.hash, size)

        def done(found: tuple[str, Header], error: TierError | None) -> None:
            call.end(str(error) if error else "")
            if error is not None:
                lane.lost(name, error)
                self._drop(read)
            elif entry.state is State.WRITING:
                self._found(read, *found)

        lane.read(work, done, on_late=lambda: self._drop(read))
        return entry

    def ended(self, entries: Sequence[Entry], ok: bool) -> None:
        """A GPU has read these, or could not read one of them."""
        for entry in entries:
            read = self._reads.get((entry.space.key, entry.hash))
            if read is None or read.entry is not entry:
                continue  # forgotten meanwhile
            if ok:
                label = read.lane.label
                self._telemetry.l2_prefetch_load_completed_chunks.add(1, label)
                self._telemetry.l2_transfer_bytes.add(entry.size, "load", label)
            else:
                self._distrust(read)

    def busy(self, lane: Lane) -> set[ObjectName]:
        """What must not be evicted from a lane now."""
        return {r.name for r in self._reads.values() if r.lane is lane and _in_use(r.entry)}

    def forget_unused(self) -> None:
        """Forget what nobody holds: its file may go."""
        for read in [read for read in self._reads.values() if not _in_use(read.entry)]:
            self._forget(read)

    def forget_all(self) -> None:
        """The cache has been cleared: nothing of it is to be found any more."""
        for read in list(self._reads.values()):
            self._drop(read)

    def _found(self, read: _Read, path: str, header: Header) -> None:
        entry = read.entry
        entry.file = StoredFile(path, HEADER_BYTES, header.digest)
        entry.missing, entry.state = header.missing, State.BELOW
        read.lane.catalog.touch(read.name)
        entry.settle()

    def _drop(self, read: _Read) -> None:
        """It will not be found again; a copy that is under way goes on."""
        self._forget(read)
        if read.entry.state is State.WRITING:
            read.entry.state = State.GONE
            read.entry.settle()

    def _forget(self, read: _Read) -> None:
        key = read.entry.space.key, read.entry.hash
        if self._reads.get(key) is read:
            del self._reads[key]

    def _distrust(self, read: _Read) -> None:
        self._telemetry.l2_prefetch_failure_chunks.add(
            1, "gpu_read", read.entry.space.key.model_name
        )
        self._failed[read.name] = None
        while len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)
        self._forget(read)


def _in_use(entry: Entry) -> bool:
    return bool(entry.state is State.WRITING or entry.leases or entry.pins)
