"""Files that are being written, and have no name of their own yet."""

import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from sidecar.tiers.adapters.file_calls import entries, in_directory
from sidecar.tiers.adapters.file_io import os_errors

_SUFFIX = ".part"
_DAY = 86400.0


class TempFiles:
    """Those of one writer in `directory`, in which others may write too if it is `shared`."""

    def __init__(self, directory: str, shared: bool) -> None:
        self.directory = directory
        self._shared = shared
        # No two writers of a shared directory use the same name.
        self._token = secrets.token_hex(8)
        self._count = count()

    def new_path(self) -> str:
        """One that nobody has used."""
        return f"{self.directory}/{self._token}.{next(self._count)}{_SUFFIX}"

    def create(self, path: str, more_flags: int) -> io.FileIO:
        """The open file; closing it is part of writing it, where a network is behind it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | more_flags
        fd = in_directory(self.directory, lambda: os.open(path, flags, 0o600))
        return io.FileIO(fd, "w")

    @contextmanager
    def or_removed(self, path: str) -> Iterator[None]:
        """Errors of the system as TierError; after any error the file is not there."""
        try:
            with os_errors():
                yield
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def remove_leftovers(self) -> None:
        """What a killed writer left. In a shared directory only age tells that it is gone."""
        limit = time.time() - _DAY
        for entry in entries(self.directory):
            with suppress(FileNotFoundError):
                ours = entry.name.endswith(_SUFFIX)
                if ours and (not self._shared or entry.stat().st_mtime < limit):
                    os.unlink(entry.path)
