"""Handle mode, store past the L1: a worker's GPU writes objects into files itself."""

from collections.abc import Callable

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.engines.registry import Instance
from sidecar.engines.worker_memory import ChunkCopy
from sidecar.gds.file_entry import FileEntry
from sidecar.gds.file_memory import moves_files
from sidecar.gds.file_stores import FileStores
from sidecar.handlers.chunk_copies import Chunk
from sidecar.handlers.core import Core
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.stores import Stores
from sidecar.telemetry.spans import Span


class StoresToFiles(Stores):
    """store, where what GPUs can write to files themselves needs no slot of the L1."""

    def __init__(
        self, files: FileStores, core: Core, eviction: Eviction, lost: Callable[[Instance], None]
    ) -> None:
        super().__init__(core, eviction, lost)
        self._files = files

    async def _reserve(
        self, instance: Instance, place: SpaceKey, chunks: list[Chunk], others: list[Entry],
        span: Span,
    ) -> list[ChunkCopy]:  # fmt: skip
        """Files for what can go there, slots of the L1 for the rest.

        `others` gets the files, too: the worker is answered when they have their names.
        """
        if not moves_files(instance.memory):
            return await super()._reserve(instance, place, chunks, others, span)
        claimed, left = self._claim_files(instance, place, chunks, others)
        if claimed:
            await self._files.make_files([entry for _, entry in claimed], span)
        in_files = [(chunk, entry) for chunk, entry in claimed if entry.file is not None]
        failed = [(chunk, entry) for chunk, entry in claimed if entry.file is None]
        left += [chunk for chunk, _ in failed]
        copies = await super()._reserve(instance, place, left, others, span)
        space = self._core.l1.space(place)
        for chunk, entry in failed:
            # Who waits for it waits for what takes its place from now on.
            entry.settle(space.writing.get(chunk.hash) if space is not None else None)
            self._files.give_up([entry])
        others += [entry for _, entry in in_files]
        return [*copies, *(_copy(chunk, entry) for chunk, entry in in_files)]

    def _abort(self, copies: list[ChunkCopy]) -> None:
        self._files.give_up(_files(copies))
        super()._abort(_slots(copies))

    def _publish(
        self, copies: list[ChunkCopy], place: SpaceKey, hashes: list[bytes], span: Span
    ) -> None:
        super()._publish(_slots(copies), place, hashes, span)
        self._files.publish(_files(copies))

    def _claim_files(
        self, instance: Instance, place: SpaceKey, chunks: list[Chunk], others: list[Entry]
    ) -> tuple[list[tuple[Chunk, FileEntry]], list[Chunk]]:
        """Which chunks go into new files, and which are left for the L1."""
        claimed, left = [], []
        for chunk in chunks:
            claim = None
            if not (chunk.missing or self._core.l1.knows(place, chunk.hash)):
                claim = self._files.claim(place, chunk.hash, instance.object_bytes)
            if claim is None:
                left.append(chunk)
                continue
            entry, is_new = claim
            if entry is not None and is_new:
                claimed.append((chunk, entry))
            elif entry is not None:
                others.append(entry)
        return claimed, left


def _copy(chunk: Chunk, entry: FileEntry) -> ChunkCopy:
    return ChunkCopy(entry, chunk.blocks, [None] * len(chunk.blocks))


def _files(copies: list[ChunkCopy]) -> list[FileEntry]:
    return [copy.entry for copy in copies if isinstance(copy.entry, FileEntry)]


def _slots(copies: list[ChunkCopy]) -> list[ChunkCopy]:
    return [copy for copy in copies if not isinstance(copy.entry, FileEntry)]
