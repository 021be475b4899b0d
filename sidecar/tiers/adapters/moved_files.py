"""A directory whose files GPUs read and write themselves, past the L1."""

import io
import os
from contextlib import suppress

from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_calls import open_regular
from sidecar.tiers.adapters.file_io import PAGE, os_errors
from sidecar.tiers.names import ObjectName


class MovedFiles(Files):
    """`Files`, and what is to be done before and after a GPU has moved the bytes of one."""

    def peek(self, name: ObjectName, size: int) -> tuple[str, bytes]:
        """The path and the first page of the record of `size` bytes. Raises as `load` does."""
        with self._reading(name, size, 0) as file:
            return self._file(name), file.read(PAGE)

    def new_file(self, size: int) -> str:
        """The path of a file of `size` bytes for others to write, then for `keep` or `discard`.

        It has its blocks: what is written to it later finds room, and does not change its length.
        """
        self._check_place()
        temp = self._temp.new_path()
        # Where there is no fallocate, libc writes a byte to each block, which O_DIRECT refuses.
        with self._temp.or_removed(temp), self._temp.create(temp, 0) as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return temp

    def keep(self, temp: str, head: bytes, name: ObjectName) -> None:
        """Write a new file's first page and give it its name. It is discarded if that fails."""
        self._check_place()
        with self._temp.or_removed(temp):
            with io.FileIO(open_regular(temp, os.O_RDWR), "r+") as file:
                file.write(head)
                self._sync(file.fileno())
            self._publish(temp, name)

    def discard(self, temp: str) -> None:
        """A new file is not wanted. One that cannot be removed is at the next start."""
        with os_errors(), suppress(FileNotFoundError):
            os.unlink(temp)
