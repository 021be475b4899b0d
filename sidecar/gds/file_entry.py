"""An object that is in a file, and has no slot of the L1."""

from typing import NamedTuple

from sidecar.cache.entry import Entry, Sizes, Space
from sidecar.flow import Outcome


class StoredFile(NamedTuple):
    """Where the bytes of an object are, and their xxh3_128 (16 bytes; empty: not written yet)."""

    path: str
    offset: int
    digest: bytes


class FileEntry(Entry, gc=False, eq=False):
    """One object of `size` bytes that a GPU reads from `file`, or writes to it, by itself.

    `failed`: a GPU could not. Without `file` its header is not read yet, or its file not made.
    """

    file: StoredFile | None = None
    failed: bool = False


def file_entry(space: Space, chunk_hash: bytes, size: int) -> FileEntry:
    """An object that has no slot; `space` is none of the L1's."""
    return FileEntry(space, chunk_hash, 0, Sizes(size, 0, 0), settled=Outcome())
