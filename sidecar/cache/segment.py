"""The POSIX shared-memory segment that holds the L1, owned by lock.

Beside the segment lies a lock file that is held for the life of the process. Whoever finds
the lock free knows that its owner is gone, in whatever PID namespace it lived, and removes
what it left: shared memory outlives a SIGKILL, and a full /dev/shm takes the host down.
"""

import errno
import fcntl
import mmap
import os
import re
from pathlib import Path

SHM_DIR = Path("/dev/shm")
# The name that stock clients and operators know from `lmcache server`.
SEGMENT_PREFIX = "lmcache_l1_pool_"
_LOCK_PREFIX = "kv_sidecar_lock_"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GIB = 1 << 30


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
        fd = _lock(self._lock_path)
        if fd is None:
            raise SegmentError(
                f"another kv-sidecar runs with the name {name!r}: choose another --shm-name"
            )
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
        fd = _lock(lock_path)
        if fd is None:
            continue
        segment = SHM_DIR / (SEGMENT_PREFIX + lock_path.name.removeprefix(_LOCK_PREFIX))
        if segment.exists():
            segment.unlink()
            removed.append(segment.name)
        lock_path.unlink()
        os.close(fd)
    return removed


def _lock(path: Path) -> int | None:
    """An open, locked descriptor of the file at `path`; None if somebody else holds it."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.ELOOP):
                return None  # another user's
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _is_still(fd, path):
            return fd
        os.close(fd)  # its last owner unlinked it between our open and our lock


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _check_room(size: int) -> None:
    room = os.statvfs(SHM_DIR)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise SegmentError(
            f"{SHM_DIR} has {free / _GIB:.2f} GiB free and the L1 needs {size / _GIB:.2f} GiB: "
            "mount a larger one (docker --shm-size, Kubernetes emptyDir with medium: Memory) "
            "or lower --l1-size-gb"
        )
