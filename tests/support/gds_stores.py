"""Tiers whose objects GPUs write to files themselves, with a disk that may be stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import xxhash

from sidecar.gds.file_entry import FileEntry
from sidecar.telemetry.spans import NO_SPAN
from sidecar.tiers.adapters.fs import DirectIO
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, hash_of

RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES
SKIP_L1 = replace(DEFAULTS, skip_l1=True)


class StuckFiles(MovedFiles):
    """Calls of `stuck` wait until they are released."""

    stuck = ""

    def __init__(self, base: str) -> None:
        super().__init__(base, DirectIO())
        self.released = threading.Event()

    def new_file(self, size: int) -> str:
        self._wait("new_file")
        return super().new_file(size)

    def keep(self, temp: str, head: bytes, name: ObjectName) -> None:
        self._wait("keep")
        super().keep(temp, head, name)

    def _wait(self, call: str) -> None:
        if self.stuck == call:
            assert self.released.wait(60)


class Site:
    """Tiers over files that GPUs write; the L1 is not to keep what is stored."""

    def __init__(self, folder: Path, scanned: bool = True, **settings: object) -> None:
        self.files, self.folder = StuckFiles(str(folder)), folder
        settings = {"for_gpus": True, **settings}
        self.bench = Bench(self.files, policy=SKIP_L1, settings=settings)
        if scanned:
            self.bench.start()
        assert self.bench.gds is not None and self.bench.gds.stores is not None
        self.stores = self.bench.gds.stores
        (self.backend,) = self.bench.tiers.backends

    def claim(self, number: int) -> FileEntry | None:
        """A new object to store, None if it has to go through the L1."""
        claimed = self.stores.claim(SPACE, hash_of(number), OBJECT_BYTES)
        if claimed is None:
            return None
        entry, is_new = claimed
        assert entry is not None and is_new
        return entry

    def begin(self, *numbers: int) -> list[FileEntry]:
        """Objects whose files have been made, as far as that went."""
        entries = [self.claim(number) for number in numbers]
        claimed = [entry for entry in entries if entry is not None]
        made = self.bench.flows.start(self.stores.make_files(claimed, NO_SPAN))
        self.turn_until(lambda: made.done)
        return claimed

    def store(self, *numbers: int) -> list[FileEntry]:
        """All the way."""
        entries = self.begin(*numbers)
        write(*entries)
        self.stores.publish(entries)
        self.turn_until(lambda: not len(self.stores))
        return entries

    def turn_until(self, condition: Callable[[], bool]) -> None:
        def happened() -> bool:
            self.bench.tick()
            return condition()

        self.bench.run_until(happened)

    def has(self, number: int) -> bool:
        return ObjectName(space_name(SPACE), hash_of(number)) in self.backend.catalog

    def expect_nothing_left(self) -> None:
        """No store is on its way, and no file of one."""
        temp = self.folder / ".tmp"
        self.turn_until(lambda: not list(temp.iterdir()))
        assert len(self.stores) == self.backend.catalog.reserved == 0

    def counted(self, reason: str) -> int:
        return self.bench.count("l2_dropped_objects", reason)


def write(*entries: FileEntry) -> None:
    """What a GPU does: all bytes of object n are n."""
    for entry in entries:
        assert entry.file is not None
        data = entry.hash[-1:] * entry.size
        with open(entry.file.path, "r+b") as file:
            file.seek(entry.file.offset)
            file.write(data)
        entry.file = entry.file._replace(digest=xxhash.xxh3_128_digest(data))
