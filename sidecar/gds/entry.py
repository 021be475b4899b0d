"""An object that is in a file, and has no slot of the L1."""

from typing import NamedTuple

from sidecar.cache.entry import Entry, Space
from sidecar.cache.keys import SpaceKey


class StoredFile(NamedTuple):
    """Where the bytes of an object are, and their xxh3_128 (16 bytes; empty: not written yet)."""

    path: str
    offset: int
    digest: bytes


class FileEntry(Entry):
    """One object of `size` bytes that a GPU reads from `file`, or writes to it, by itself.

    `failed`: a GPU could not. Without `file` its header is not read yet, or its file not made.
    """

    __slots__ = ("failed", "file")

    def __init__(self, space: SpaceKey, chunk_hash: bytes, size: int) -> None:
        super().__init__(Space(space), chunk_hash, range(0), 0, size)
        self.file: StoredFile | None = None
        self.failed = False
