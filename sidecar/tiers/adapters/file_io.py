"""How bytes move between a record and an open file. NIXL has its own way (`nixl_files`)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from sidecar.tiers.base import Bytes, Corrupt, NoSpace, TierError

PAGE = 4096


class FileIO(Protocol):
    """Moves whole records. `write` and `read` may be called by several threads at once.

    They raise OSError or TierError, and do so only when nothing moves bytes of the record any
    more.
    """

    def open(self, arena: Bytes, fd: int) -> None:
        """Get ready to move bytes of `arena`.

        `fd` is an empty file to try it with, opened as those to come will be. Raises
        AdapterUnusable, OSError or TierError if it does not work.
        """

    def write(self, fd: int, record: Bytes) -> None:
        """Write all of `record` to the beginning of the file."""

    def read(self, fd: int, record: Bytes) -> None:
        """Fill `record` from the beginning of the file, which is as long as the record."""

    def close(self) -> None:
        """Give back what `open` took."""


class DirectIO:
    """The system calls."""

    def open(self, arena: Bytes, fd: int) -> None:
        try_out(self, arena, fd)

    def write(self, fd: int, record: Bytes) -> None:
        left, offset = record.data, 0
        while left:
            written = os.pwrite(fd, left, offset)
            left, offset = left[written:], offset + written

    def read(self, fd: int, record: Bytes) -> None:
        left, offset = record.data, 0
        while left:
            got = os.preadv(fd, [left], offset)
            if not got:
                raise Corrupt("length", f"the file ends after {offset} bytes")
            left, offset = left[got:], offset + got

    def close(self) -> None:
        pass


def try_out(io: FileIO, arena: Bytes, fd: int) -> None:
    """Write a page to `fd` and read it back, which leaves `arena` as it was.

    A full file system is no obstacle: what it holds can still be served.
    """
    with suppress(NoSpace), os_errors():
        io.write(fd, arena[:PAGE])
        io.read(fd, arena[:PAGE])


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise an OSError as the TierError that it means."""
    try:
        yield
    except OSError as error:
        raise _tier_error(error) from error


def _tier_error(error: OSError) -> TierError:
    cause = errno.errorcode.get(error.errno or 0, "OSError")
    detail = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(cause, detail)
    return TierError(cause, detail)
