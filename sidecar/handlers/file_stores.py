"""Handle mode, store past the L1: a worker's GPU writes objects into files itself.

Only stores of such workers come here.
"""

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.engines.memory import ChunkCopy
from sidecar.flow import Outcome
from sidecar.gds.entry import FileEntry
from sidecar.handlers.chunk_copies import Chunk
from sidecar.telemetry.spans import Span
from sidecar.tiers.direct_stores import DirectStores


class FileStores:
    """What a store does for the chunks of it that go into files."""

    def __init__(self, stores: DirectStores, l1: L1) -> None:
        self._stores, self._l1 = stores, l1

    async def begin(
        self, place: SpaceKey, size: int, chunks: list[Chunk], span: Span
    ) -> tuple[list[ChunkCopy], list[Entry], list[Chunk]]:
        """Make files for objects of `size` bytes, as far as they can be made.

        Returns what to copy into them, what others are writing, and which chunks are left for
        the L1. A chunk whose file could not be made names it as `failed`: `replace` it.
        """
        claimed: list[tuple[Chunk, FileEntry]] = []
        others: list[Entry] = []
        left = []
        for chunk in chunks:
            claim = None
            if not (chunk.missing or self._l1.knows(place, chunk.hash)):
                claim = self._stores.claim(place, chunk.hash, size)
            if claim is None:
                left.append(chunk)
                continue
            entry, is_new = claim
            if entry is not None and is_new:
                entry.settled = Outcome()
                claimed.append((chunk, entry))
            elif entry is not None:
                others.append(entry)
        if claimed:
            entries = [entry for _, entry in claimed]
            made: Outcome[None] = Outcome()
            self._stores.prepare(entries, span, lambda: made.set(None))
            await made
        left += [chunk._replace(failed=e) for chunk, e in claimed if e.file is None]
        copies = [
            ChunkCopy(entry, chunk.blocks, [None] * len(chunk.blocks))
            for chunk, entry in claimed
            if entry.file is not None
        ]
        return copies, others, left

    def replace(self, failed: FileEntry, entry: Entry | None) -> None:
        """Who waits for a file that could not be made waits for `entry` from now on."""
        failed.settle(entry)
        self._stores.give_up([failed])

    def give_up(self, copies: list[ChunkCopy]) -> None:
        """The copies have failed, or nobody may find what they have written."""
        self._stores.give_up(_entries(copies))

    def publish(self, copies: list[ChunkCopy]) -> list[Entry]:
        """The GPU has written these; each settles when its file has its name, or too late."""
        self._stores.publish(_entries(copies))
        return [copy.entry for copy in copies]


def _entries(copies: list[ChunkCopy]) -> list[FileEntry]:
    return [copy.entry for copy in copies if isinstance(copy.entry, FileEntry)]
