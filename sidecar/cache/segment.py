"""The POSIX shared-memory segment that holds the L1, owned by lock.

Beside the segment lies its lock file (`lockfile`). Whoever finds the lock free removes what the
owner left: shared memory outlives a SIGKILL, and a full /dev/shm takes the host down.
"""

import errno
import glob
import mmap
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sidecar.cache.lockfile import lock

SHM_DIR = Path("/dev/shm")
# The name that stock clients and operators know from `lmcache server`.
SEGMENT_PREFIX = "lmcache_l1_pool_"
_LOCK_PREFIX = "kv_sidecar_lock_"
_LINK = "@"  # which no segment's own name has
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GIB = 1 << 30
# Another server that starts holds each free lock for a moment: is it an orphan's?
_SWEEP_SECONDS = 1.0


class SegmentError(RuntimeError):
    """The segment cannot be had; the text says why and what to do."""


class Segment:
    """An owned segment of `size` bytes, mapped read-write as `map`. `remove` ends it."""

    def __init__(self, name: str, size: int) -> None:
        """Raises SegmentError; nothing is left in /dev/shm then."""
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
            self.map = self._map()
        except BaseException:
            self._disown()
            raise

    def remove(self) -> None:
        """Take the segment's name away; the memory goes when its last mapping does. Once."""
        # The lock's file last: while it is there the next start can do what we do not come to.
        if not self._removed:
            _unlink_others(self.name)
            self._path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
            self._removed = True  # here: a signal's handler may call this in the midst of it
            os.close(self._lock_fd)

    def link(self, suffix: str) -> str:
        """One more name of the segment, for somebody whose openings shall be told apart.

        Raises OSError if there can be none.
        """
        name = self.name + _LINK + suffix
        os.link(self._path, SHM_DIR / name)
        return name

    def unlink(self, name: str) -> None:
        """Take a name away that `link` has made."""
        (SHM_DIR / name).unlink(missing_ok=True)

    def _own(self, name: str) -> int:
        deadline = time.monotonic() + _SWEEP_SECONDS
        while (fd := self._lock()) is None:
            if time.monotonic() > deadline:
                raise SegmentError(
                    f"another kv-sidecar runs with the name {name!r}: choose another --shm-name"
                )
            time.sleep(0.01)
        return fd

    def _lock(self) -> int | None:
        try:
            return _lock_ours(self._lock_path)
        except OSError as error:
            path, why = self._lock_path, error.strerror
            if not os.path.lexists(path):
                raise SegmentError(f"{path} cannot be made: {why}") from None
            raise SegmentError(f"{path} is not ours ({why}): choose another --shm-name") from None

    def _disown(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def _create(self) -> int:
        _check_room(self.size)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self._path, flags, 0o600)
        except FileExistsError:
            raise SegmentError(
                f"{self._path} belongs to another program: choose another --shm-name"
            ) from None
        except OSError as error:
            raise SegmentError(f"{self._path} cannot be made: {error.strerror}") from None

    def _map(self) -> mmap.mmap:
        try:
            os.ftruncate(self.fd, self.size)
            return mmap.mmap(self.fd, self.size)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            os.close(self.fd)
            size = f"{self.size / _GIB:.2f} GiB"
            raise SegmentError(f"{self._path} cannot have {size}: {error.strerror}") from None


class Sweep(NamedTuple):
    """What a look for dead servers' segments did: the names removed, and those not ours."""

    removed: list[str]
    foreign: list[str]


def remove_orphans() -> Sweep:
    """Remove this user's segments whose owners are gone.

    Anybody may put anything into /dev/shm under such a name: that is left alone.
    """
    removed, foreign = [], []
    for lock_path in sorted(SHM_DIR.glob(_LOCK_PREFIX + "*")):
        segment = SHM_DIR / (SEGMENT_PREFIX + lock_path.name.removeprefix(_LOCK_PREFIX))
        try:
            if _remove_orphan(lock_path, segment):
                removed.append(segment.name)
        except OSError:
            foreign.append(lock_path.name)
    return Sweep(removed, foreign)


def _remove_orphan(lock_path: Path, segment: Path) -> bool:
    """Whether there was a segment. Raises OSError for what is not ours."""
    fd = _lock_ours(lock_path)
    if fd is None:
        return False  # its owner lives
    try:
        _unlink_others(segment.name)
        found = _is_ours(segment)
        if found:
            segment.unlink()
        lock_path.unlink()
        return found
    finally:
        os.close(fd)


def _lock_ours(path: Path) -> int | None:
    """As `lock`; raises PermissionError for another user's file, even if we may open it."""
    fd = lock(path)
    if fd is not None and os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(errno.EPERM, "another user's", str(path))
    return fd


def _unlink_others(name: str) -> None:
    """Take away the further names of the segment called `name`, as far as they are ours."""
    for path in SHM_DIR.glob(glob.escape(name) + _LINK + "*"):
        with suppress(OSError):
            if _is_ours(path):
                path.unlink()


def _is_ours(path: Path) -> bool:
    """Whether there is a file of this user, and nothing else."""
    return path.is_file() and path.lstat().st_uid == os.geteuid()


def _check_room(size: int) -> None:
    room = os.statvfs(SHM_DIR)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise SegmentError(
            f"{SHM_DIR} has {free / _GIB:.2f} GiB free and the L1 needs {size / _GIB:.2f} GiB: "
            "mount a larger one (docker --shm-size, Kubernetes emptyDir with medium: Memory) "
            "or lower --l1-size-gb"
        )
