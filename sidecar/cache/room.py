"""The room in shared memory, and what will be room without anybody's doing."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Room(NamedTuple):
    """Bytes of a file system. `nameless` ones are of removed files that somebody still maps.

    Workers keep the L1 of an ended server mapped for a while; its memory is in use so long.
    """

    free: int
    total: int
    nameless: int


def room_in(folder: Path) -> Room:
    """`nameless` is 0 unless the whole file system can be seen."""
    found = os.statvfs(folder)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    nameless = max(0, used - _named_bytes(folder)) if folder.is_mount() else 0
    return Room(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, nameless)


def _named_bytes(folder: Path) -> int:
    """What the files below `folder` take, each one once, however many names it has."""
    sizes = {}
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # it may go meanwhile
                file = os.lstat(Path(where, name))
                sizes[file.st_ino] = file.st_blocks * 512
    return sum(sizes.values())
