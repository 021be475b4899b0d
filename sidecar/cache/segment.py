"""The POSIX shared-memory segment that holds the L1, owned by lock.

Beside the segment lies its lock file (`lockfile`). Whoever finds the lock free removes what the
owner left: shared memory outlives a SIGKILL, and a full /dev/shm takes the host down.
"""

import mmap
import os
import re
import time
from pathlib import Path

from sidecar.cache.lockfile import lock

SHM_DIR = Path("/dev/shm")
# The name that stock clients and operators know from `lmcache server`.
SEGMENT_PREFIX = "lmcache_l1_pool_"
_LOCK_PREFIX = "kv_sidecar_lock_"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GIB = 1 << 30
# Another server that starts holds each free lock for a moment: is it an orphan's?
_SWEEP_SECONDS = 1.0


class SegmentError(RuntimeError):
    """The segment cannot be had; the text says why and what to do."""


class Segment:
    """An owned segment of `size` bytes, mapped read-write as `map`. `remove` ends it."""

    def __init__(self, name: str, size: int) -> None:
        if not _NAME.fullmatch(name):
            raise SegmentError(f"bad shared-memory name {name!r}: use letters, digits, . _ -")
        self.name = SEGMENT_PREFIX + name
        self.size = size
        self._path = SHM_DIR / self.name
        self._removed = False
        self._lock_path = SHM_DIR / (_LOCK_PREFIX + name)
        self._lock_fd = self._own(name)
        try:
            self.fd = self._create()
        except BaseException:
            self._disown()
            raise
        self.map = mmap.mmap(self.fd, size)

    def remove(self) -> None:
        """Take the segment's name away; the memory goes when its last mapping does. Once."""
        if not self._removed:
            self._removed = True
            self._path.unlink(missing_ok=True)
            self._disown()

    def _own(self, name: str) -> int:
        deadline = time.monotonic() + _SWEEP_SECONDS
        while (fd := lock(self._lock_path)) is None:
            if time.monotonic() > deadline:
                raise SegmentError(
                    f"another kv-sidecar runs with the name {name!r}: choose another --shm-name"
                )
            time.sleep(0.01)
        return fd

    def _disown(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def _create(self) -> int:
        _check_room(self.size)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, 0o600)
        except FileExistsError:
            raise SegmentError(
                f"{self._path} belongs to another program: choose another --shm-name"
            ) from None
        os.ftruncate(fd, self.size)
        return fd


def remove_orphans() -> list[str]:
    """Remove the segments whose owners are gone; returns their names."""
    removed = []
    for lock_path in SHM_DIR.glob(_LOCK_PREFIX + "*"):
        fd = lock(lock_path)
        if fd is None:
            continue
        segment = SHM_DIR / (SEGMENT_PREFIX + lock_path.name.removeprefix(_LOCK_PREFIX))
        if segment.exists():
            segment.unlink()
            removed.append(segment.name)
        lock_path.unlink()
        os.close(fd)
    return removed


def _check_room(size: int) -> None:
    room = os.statvfs(SHM_DIR)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise SegmentError(
            f"{SHM_DIR} has {free / _GIB:.2f} GiB free and the L1 needs {size / _GIB:.2f} GiB: "
            "mount a larger one (docker --shm-size, Kubernetes emptyDir with medium: Memory) "
            "or lower --l1-size-gb"
        )
