"""The POSIX shared-memory segment that holds the L1, owned by lock.

Beside the segment lies its lock file (`lockfile`). Whoever finds the lock free removes what the
owner left: shared memory outlives a SIGKILL, and a full /dev/shm takes the host down. An owner may
have wished it to be kept for a successor of its name: its lock file says for how long (`will`).
"""

import errno
import fcntl
import glob
import logging
import mmap
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sidecar.cache import will
from sidecar.cache.lockfile import lock
from sidecar.cache.room import room_in

log = logging.getLogger(__name__)
SHM_DIR = Path("/dev/shm")
# The name that stock clients and operators know from `lmcache server`.
SEGMENT_PREFIX = "lmcache_l1_pool_"
_LOCK_PREFIX, INDEX_PREFIX = "kv_sidecar_lock_", "kv_sidecar_index_"
_LINK = "@"  # which no segment's own name has
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GIB = 1 << 30
# Another server that starts holds each free lock for a moment: is it an orphan's?
_SWEEP_SECONDS = 1.0


class SegmentError(RuntimeError):
    """The segment cannot be had; the text says why and what to do."""


class Segment:
    """An owned segment of `size` bytes, mapped read-write as `map`. `remove` ends it."""

    def __init__(self, name: str, size: int, keep_seconds: float = 0.0) -> None:
        """Raises SegmentError; nothing new is left in /dev/shm then.

        With `keep_seconds` it is what an earlier owner of the name has left, if there is that:
        `is_inherited`. Then `renew` makes a new one of it. And what `leave` leaves is kept.
        """
        if not _NAME.fullmatch(name):
            raise SegmentError(f"bad shared-memory name {name!r}: use letters, digits, . _ -")
        self.name = SEGMENT_PREFIX + name
        self.size = size
        self._path = SHM_DIR / self.name
        self.index_path = SHM_DIR / (INDEX_PREFIX + name)
        self.is_inherited = False
        self._keep_seconds = keep_seconds
        self._given_up = False
        self._lock_path = SHM_DIR / (_LOCK_PREFIX + name)
        self._lock_fd = self._own(name)
        try:
            had_will = will.read(self._lock_fd).keep_seconds > 0
            fd = self._open_old(size) if had_will and keep_seconds else None
            self.is_inherited = fd is not None
            if fd is None and had_will:
                self._unlink_old()
            self.fd = self._create() if fd is None else fd
            self.map = self._map()
            will.write(self._lock_fd, will.Will(keep_seconds))
        except BaseException:
            if self.is_inherited:
                os.close(self._lock_fd)  # it is still to be kept
            else:
                self._disown()
            raise

    def renew(self) -> None:
        """Have a new one, empty, in the place of what was inherited. Raises SegmentError."""
        self.map.close()
        os.close(self.fd)
        self._unlink_old()
        self.is_inherited = False
        self.fd = self._create()
        self.map = self._map()

    def is_alone(self) -> bool:
        """Whether the kernel says that no other process has this memory open, or mapped.

        What it grants is a write lease, which it gives to the only one who has a file open.
        """
        try:
            # Who opens it in this moment waits, and has a signal sent: not SIGIO, which ends us.
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
        return True

    def links(self) -> list[str]:
        """The further names that it has."""
        return sorted(path.name for path in SHM_DIR.glob(glob.escape(self.name) + _LINK + "*"))

    def leave(self) -> None:
        """Let go of the name; what is there is kept for a successor. Not after `remove`."""
        if not self._given_up:
            self._given_up = True
            will.write(self._lock_fd, will.Will(self._keep_seconds, will.now()))
            os.close(self._lock_fd)

    def remove(self) -> None:
        """Take the segment's name away; the memory goes when its last mapping does. Once."""
        # The lock's file last: while it is there the next start can do what we do not come to.
        if not self._given_up:
            self._unlink_old()
            self._lock_path.unlink(missing_ok=True)
            self._given_up = True  # here: a signal's handler may call this in the midst of it
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

    def _open_old(self, size: int) -> int | None:
        """What an earlier owner of the name has left, if it can be gone on with."""
        if not (_is_ours(self._path) and _is_ours(self.index_path)):
            log.warning("the L1 starts empty: %s is gone, or its index is", self._path)
            return None
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(fd).st_size
        if found == size:
            return fd
        os.close(fd)
        log.warning("the L1 starts empty: %s has %d bytes, not %d", self._path, found, size)
        return None

    def _unlink_old(self) -> None:
        _unlink_others(self.name)
        for path in (self.index_path, self._path):
            path.unlink(missing_ok=True)

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
            raise SegmentError(
                f"{path} is not a file of this user ({why}): choose another --shm-name"
            ) from None

    def _disown(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def _create(self) -> int:
        _check_room(self.size)
        self.index_path.unlink(missing_ok=True)
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
            if not self.is_inherited:
                self._unlink_old()
            os.close(self.fd)
            size = f"{self.size / _GIB:.2f} GiB"
            raise SegmentError(f"{self._path} cannot have {size}: {error.strerror}") from None


class Sweep(NamedTuple):
    """What a look for dead servers' segments did: the names removed, those kept, those not ours."""

    removed: list[str]
    kept: list[str]
    foreign: list[str]


def remove_orphans(spare: str = "") -> Sweep:
    """Remove this user's segments whose owners are gone, and that are not to be kept (any more).

    Anybody may put anything into /dev/shm under such a name: that is left alone. Of what is kept
    under the name `spare` its next owner decides.
    """
    sweep = Sweep([], [], [])
    for lock_path in sorted(SHM_DIR.glob(_LOCK_PREFIX + "*")):
        name = lock_path.name.removeprefix(_LOCK_PREFIX)
        segment = SHM_DIR / (SEGMENT_PREFIX + name)
        try:
            fd = _lock_ours(lock_path)
            if fd is not None:  # else its owner lives
                try:
                    _remove_orphan(fd, lock_path, segment, sweep, name == spare)
                finally:
                    os.close(fd)
        except OSError:
            sweep.foreign.append(lock_path.name)
    return sweep


def _remove_orphan(
    lock_fd: int, lock_path: Path, segment: Path, sweep: Sweep, is_spared: bool
) -> None:
    """Raises OSError for what is not ours."""
    found = _is_ours(segment)
    if found and ((is_spared and will.read(lock_fd).keep_seconds) or will.holds(lock_fd)):
        sweep.kept.append(segment.name)
        return
    _unlink_others(segment.name)
    index = SHM_DIR / (INDEX_PREFIX + segment.name.removeprefix(SEGMENT_PREFIX))
    for path in (index, segment):
        if _is_ours(path):
            path.unlink()
    lock_path.unlink()
    if found:
        sweep.removed.append(segment.name)


class Kept(NamedTuple):
    """What a server that has ended has left for a successor of its name."""

    name: str
    bytes: int
    seconds_left: float


def kept() -> list[Kept]:
    """All of this user; nothing is changed."""
    found = []
    for lock_path in sorted(SHM_DIR.glob(_LOCK_PREFIX + "*")):
        name = lock_path.name.removeprefix(_LOCK_PREFIX)
        segment = SHM_DIR / (SEGMENT_PREFIX + name)
        if not (_is_ours(lock_path) and _is_ours(segment)):
            continue
        try:
            fd = lock(lock_path)
        except OSError:
            continue  # gone meanwhile, or nothing can be locked there
        if fd is not None:
            left = will.read(fd).seconds_left
            os.close(fd)
            if left > 0:
                found.append(Kept(name, segment.stat().st_blocks * 512, left))
    return found


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
    """Raises SegmentError unless there is room for `size` bytes, or will be by itself."""
    room = room_in(SHM_DIR)
    if size <= room.free:
        return
    free, wanted = room.free / _GIB, size / _GIB
    if size > room.free + room.nameless:
        raise SegmentError(
            f"{SHM_DIR} has {free:.2f} GiB free and the L1 needs {wanted:.2f} GiB: "
            "mount a larger one (docker --shm-size, Kubernetes emptyDir with medium: Memory) "
            "or lower --l1-size-gb"
        )
    log.warning(
        "%s has %.2f GiB free for an L1 of %.2f GiB: processes still map %.2f GiB of removed "
        "files, as workers do the L1 of an earlier server; the L1 grows as they let go of it",
        SHM_DIR, free, wanted, room.nameless / _GIB,
    )  # fmt: skip
