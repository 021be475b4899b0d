"""Ownership by lock: a file whose lock is held for the life of a process.

The kernel drops the lock when its holder dies, however it dies and in whatever PID namespace
it lived. So whoever finds it free knows that the owner is gone.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path


def lock(path: Path) -> int | None:
    """An open, locked descriptor of the file at `path`; None if somebody else holds it.

    Raises OSError where the file cannot be made or opened, is no regular file, or lies in a file
    system without locks.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no regular file", str(path))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        if is_still(fd, path):
            return fd
        os.close(fd)  # its last owner unlinked it between our open and our lock


def is_still(fd: int, path: Path) -> bool:
    """Whether the open file `fd` is what is at `path` now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
