"""The directory that a server has taken, while others mount, remove and make what they like."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from sidecar.cache.lockfile import is_still, lock
from sidecar.tiers.adapters.file_io import os_errors
from sidecar.tiers.base import AdapterUnusable, Relocated, TierError


class Place:
    """`base` with its `folders`. If it is not `shared`, one server holds its lock, which tells it
    from another place; if it is, its device and inode do.

    Methods may be called by several threads at once, but for `take` and `give_up`.
    """

    def __init__(self, base: str, folders: Sequence[str], shared: bool) -> None:
        self._base = base
        self._folders = folders
        self._shared = shared
        self._lock_file = Path(base, ".kv-sidecar.lock")
        self._lock_fd: int | None = None
        self._base_id: tuple[int, int] | None = None
        self._taking = Lock()

    def take(self) -> None:
        """Make what is missing, and lock it. Raises AdapterUnusable or OSError."""
        for directory in (self._base, *self._folders):
            os.makedirs(directory, 0o700, exist_ok=True)
        if self._shared:
            self._base_id = _id_of(self._base)
            return
        fd = lock(self._lock_file)
        if fd is None and not os.access(self._lock_file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self._lock_file))
        if fd is None:
            raise AdapterUnusable(
                f"{self._base} is in use by another kv-sidecar: "
                'choose another directory, or say "shared": true on all of them'
            )
        self.give_up()
        self._lock_fd = fd

    def give_up(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def check(self) -> None:
        """Go on with what is at the path now.

        Raises Relocated if that is not what it was: something was mounted over it or is not any
        more, or it was removed and has been made again. Raises TierError if it cannot be taken.
        """
        with os_errors():
            if self._is_taken():
                return
            with self._taking:
                if self._is_taken():
                    return
                try:
                    self.take()
                except AdapterUnusable as error:
                    raise TierError("in_use", str(error)) from None
        raise Relocated(self._base)

    def _is_taken(self) -> bool:
        if self._shared:
            return self._base_id == _id_of(self._base)
        return self._lock_fd is not None and is_still(self._lock_fd, self._lock_file)


def _id_of(directory: str) -> tuple[int, int] | None:
    """What tells it from all others; None if there is none."""
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
