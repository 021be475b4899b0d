"""Objects that a GPU reads from their files itself, past the L1.

A lookup reads their headers only. Then they are held by leases, as objects of the L1 are, and
their lane does not evict them until the retrieve.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.flow import Outcome
from sidecar.gds.entry import FileEntry, StoredFile, file_entry
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
    """An object of `lane`, whose header is being read, or is known. `parent` is the lookup's.

    `outdated`: something else was stored meanwhile, so what was read says nothing of it.
    """

    entry: FileEntry
    name: ObjectName
    lane: Lane
    parent: Span
    outdated: bool = False


class DirectReads:
    """All of them, by space and chunk hash. Loop thread only."""

    def __init__(self, lanes: Sequence[Lane], telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._reads: dict[tuple[SpaceKey, bytes], _Read] = {}
        self._waiting: dict[Lane, deque[_Read]] = {lane: deque() for lane in lanes}
        self._reading: dict[Lane, set[_Read]] = {lane: set() for lane in lanes}
        # What a GPU could not read, or found to be bad, and what a fuller object may have to
        # replace: in the L1 it is seen which of these it is.
        self._through_l1: OrderedDict[ObjectName, None] = OrderedDict()

    def allows(self, lane: Lane, name: ObjectName, size: int) -> bool:
        """Whether the object of `size` bytes can be read in this way."""
        fits = size % _WORD == 0 and size > _SHORT
        return lane.files is not None and fits and name not in self._through_l1

    def find(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object for one more lookup: if it is held, or its header is on its way."""
        read = self._reads.get((space, chunk_hash))
        if read is None or not _in_use(read.entry):
            return None
        if read.name in self._through_l1 or read.name not in read.lane.catalog:
            return None
        # Of a backend that is cut off nobody knows when it answers.
        answers = read.entry.state is State.BELOW or read.lane.reads.allows()
        return read.entry if answers else None

    def ready(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object, if it was promised to somebody."""
        read = self._reads.get((space, chunk_hash))
        promised = read is not None and read.entry.state is State.BELOW and _in_use(read.entry)
        return read.entry if read is not None and promised else None

    def begin(self, space: SpaceKey, name: ObjectName, size: int, lane: Lane, span: Span) -> Entry:
        """Have the header of an object read that `find` does not know. `pump` begins that."""
        entry = file_entry(space, name.hash, size)
        entry.settled = Outcome()
        read = self._reads[space, name.hash] = _Read(entry, name, lane, span)
        self._telemetry.l2_prefetch_load_submitted_objects_chunks.add(1, lane.label)
        self._waiting[lane].append(read)
        return entry

    def pump(self) -> None:
        """Hand to the threads what they can take, but for what nobody waits for any more."""
        for lane, waiting in self._waiting.items():
            while waiting and len(self._reading[lane]) < lane.read_slots:
                read = waiting.popleft()
                if read.entry.leases and read.entry.state is State.WRITING and lane.reads.allows():
                    self._start(read)
                else:
                    self._drop(read)

    def ended(self, entries: Sequence[Entry]) -> list[Entry]:
        """GPUs are through with these, or could not read them. Returns those of the L1."""
        in_files = [entry for entry in entries if isinstance(entry, FileEntry)]
        for entry in in_files:
            read = self._reads.get((entry.space.key, entry.hash))
            if read is None or read.entry is not entry:
                continue  # forgotten meanwhile
            if entry.failed:
                model = entry.space.key.model_name
                self._telemetry.l2_prefetch_failure_chunks.add(1, "gpu_read", model)
                self._avoid(read.name)
            else:
                label = read.lane.label
                self._telemetry.l2_prefetch_load_completed_chunks.add(1, label)
                self._telemetry.l2_transfer_bytes.add(entry.size, "load", label)
        return [entry for entry in entries if not isinstance(entry, FileEntry)]

    def busy(self, lane: Lane) -> set[ObjectName]:
        """What must not be evicted from a lane now."""
        return {r.name for r in self._reads.values() if r.lane is lane and _in_use(r.entry)}

    def replaced(self, lane: Lane, name: ObjectName) -> None:
        """Something was stored under `name`."""
        self._through_l1.pop(name, None)
        for read in self._reading[lane]:
            read.outdated = read.outdated or read.name == name

    def trust(self, name: ObjectName) -> None:
        """The object has come into the L1 and was good."""
        self._through_l1.pop(name, None)

    def forget_unused(self) -> None:
        """Forget what nobody holds: its file may go."""
        for read in [read for read in self._reads.values() if not _in_use(read.entry)]:
            self._forget(read)

    def forget_all(self) -> None:
        """The cache has been cleared: nothing of it is to be found any more."""
        reads, self._reads = self._reads, {}
        for read in reads.values():
            self._drop(read)

    def _start(self, read: _Read) -> None:
        entry, lane, name = read.entry, read.lane, read.name
        call = read.parent.child("l2_peek", l2_name=lane.label)
        files, whole, epoch = lane.files, HEADER_BYTES + aligned(entry.size), lane.epoch
        assert files is not None
        self._reading[lane].add(read)

        def work() -> tuple[str, Header]:
            path, head = files.peek(epoch.tagged(name), whole)
            return path, read_header(head, entry.space.key, entry.hash, entry.size)

        def done(found: tuple[str, Header], error: TierError | None) -> None:
            call.end(str(error) if error else "")
            self._reading[lane].discard(read)
            if error is not None:
                self._lost(read, error)
            elif entry.state is State.WRITING:
                self._found(read, *found)
            self.pump()

        lane.read(work, done, on_late=lambda: self._drop(read))

    def _found(self, read: _Read, path: str, header: Header) -> None:
        entry = read.entry
        if header.missing:
            # A store of a fuller one takes the place of what it finds in the L1.
            self._avoid(read.name)
            self._drop(read)
            return
        entry.file = StoredFile(path, HEADER_BYTES, header.digest)
        entry.step("keep in a file")
        read.lane.catalog.touch(read.name)
        entry.settle()

    def _lost(self, read: _Read, error: TierError) -> None:
        known = self._reads.get((read.entry.space.key, read.entry.hash)) is read
        if known and not read.outdated:
            read.lane.lost(read.name, error)
        self._drop(read)

    def _drop(self, read: _Read) -> None:
        """It will not be found again; a copy that is under way goes on."""
        self._forget(read)
        if read.entry.state is State.WRITING:
            read.entry.step("abort")
            read.entry.settle()

    def _forget(self, read: _Read) -> None:
        key = read.entry.space.key, read.entry.hash
        if self._reads.get(key) is read:
            del self._reads[key]

    def _avoid(self, name: ObjectName) -> None:
        self._through_l1[name] = None
        while len(self._through_l1) > _REMEMBERED:
            self._through_l1.popitem(last=False)


def _in_use(entry: Entry) -> bool:
    return bool(entry.state is State.WRITING or entry.leases or entry.pins)
