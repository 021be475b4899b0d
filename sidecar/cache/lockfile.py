"""Ownership by lock: a file whose lock is held for the life of a process.

The kernel drops the lock when its holder dies, however it dies and in whatever PID namespace
it lived. So whoever finds it free knows that the owner is gone.
"""

import errno
import fcntl
import os
from pathlib import Path


def lock(path: Path) -> int | None:
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
        except OSError:
            os.close(fd)
            raise  # a file system without locks
        if _is_still(fd, path):
            return fd
        os.close(fd)  # its last owner unlinked it between our open and our lock


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
