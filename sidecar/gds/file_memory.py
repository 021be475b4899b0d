"""The memory of a worker whose GPU moves objects from and to files, too."""

from collections.abc import Callable, Sequence
from functools import partial

from sidecar.engines.cuda.gpu_memory import GpuMemory
from sidecar.engines.cuda.protocol import FileObject, Moved
from sidecar.engines.worker_memory import ChunkCopy, WorkerMemory
from sidecar.gds.file_entry import FileEntry


class FileMemory(GpuMemory):
    """`GpuMemory` whose transfers take objects that are in files."""

    def _transfer(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None],
        is_store: bool,
    ) -> None:  # fmt: skip
        in_l1 = [copy for copy in copies if not isinstance(copy.entry, FileEntry)]
        entries = [copy.entry for copy in copies if isinstance(copy.entry, FileEntry)]
        if entries and in_l1:
            on_done = _both(on_done)
        if in_l1:
            super()._transfer(in_l1, event, on_done, is_store)
        if entries:
            in_files = [copy for copy in copies if isinstance(copy.entry, FileEntry)]
            on_moved = partial(_take, entries)
            self._move_files(_objects(entries), in_files, event, on_moved, on_done, is_store)


def _take(entries: Sequence[FileEntry], moved: Moved) -> None:
    """What came of a transfer of these."""
    for entry in entries:
        entry.failed |= moved.file_failed
    if moved.error is None and moved.digests:  # they have been written
        for entry, digest in zip(entries, moved.digests, strict=True):
            assert entry.file is not None
            entry.file = entry.file._replace(digest=digest)


def moves_files(memory: WorkerMemory | None) -> bool:
    """Whether a worker's transfers take objects that are in files, as of now."""
    return isinstance(memory, FileMemory) and memory.gpu.moves_files


def _both(on_done: Callable[[bool], None]) -> Callable[[bool], None]:
    """To be called twice; the second time calls `on_done`, with whether both went well."""
    outcomes: list[bool] = []

    def part_done(ok: bool) -> None:
        outcomes.append(ok)
        if len(outcomes) == 2:
            on_done(all(outcomes))

    return part_done


def _objects(entries: Sequence[FileEntry]) -> list[FileObject]:
    return [
        FileObject(file.path, file.offset, entry.size, file.digest)
        for entry in entries
        if (file := entry.file) is not None
    ]
