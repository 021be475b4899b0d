"""Files into GPU memory by NIXL: GDS and GDS_MT, which use cuFile."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sidecar import nixl


class CannotRead(Exception):
    """There is no such object to be had; nothing writes to its memory any more."""


class ReadFailed(Exception):
    """A read failed after its begin: its memory may still be written to.

    NIXL's GDS reports the first part that fails and cancels the others, and cuFile does not
    promise that those are over then. What they leave in its queues would pass for the end of
    later reads, so there are none.
    """


class FileReader:
    """A NIXL agent with one backend. For one thread.

    The start takes seconds. A call may read what it begins or asks for: NIXL's GDS does where
    cuFile copies by way of host memory.
    """

    def __init__(self, backend: str, params: Mapping[str, str]) -> None:
        """Start it, which takes a second or two. Raises CannotRead."""
        try:
            api = nixl.load()
        except nixl.NixlMissing as error:
            raise CannotRead(str(error)) from None
        self._failures = nixl.failures(api)
        self.backend = backend
        self.failed: str | None = None
        """Why nothing can be begun any more."""
        with self.errors(CannotRead):
            self.agent = nixl.new_agent(api, backend, params)

    def register(self, address: int, size: int) -> Any:
        """Make device memory known, for `deregister`. Raises CannotRead."""
        with self.errors(CannotRead):
            return self.agent.register_memory([(address, size, 0, "")], "VRAM")

    def deregister(self, memory: Any) -> None:
        """Forget memory that will be freed. Raises CannotRead: then it may not be freed."""
        with self.errors(CannotRead):
            self.agent.deregister_memory(memory)

    def begin(self, path: str, offset: int, size: int, address: int) -> "Read":
        """Begin to read bytes of a file into registered memory.

        Raises CannotRead if nothing has begun, ReadFailed if something may have.
        """
        if self.failed is not None:
            raise CannotRead(self.failed)
        try:
            fd = _open(path)
        except OSError as error:
            raise CannotRead(f"{path}: {error.strerror}") from None
        try:
            transfer, file = self._prepare(fd, path, offset, size, address)
        except CannotRead:
            os.close(fd)
            raise
        return Read(self, transfer, file, fd)

    def _prepare(self, fd: int, path: str, offset: int, size: int, address: int) -> tuple[Any, Any]:
        length = os.fstat(fd).st_size
        if length < offset + size:
            raise CannotRead(f"{path}: {length} bytes, of which {offset + size} are needed")
        agent = self.agent
        with self.errors(CannotRead):
            file = agent.register_memory([(offset, size, fd, "")], "FILE")
            try:
                here = agent.get_xfer_descs([(address, size, 0)], "VRAM")
                there = agent.get_xfer_descs([(offset, size, fd)], "FILE")
                return agent.initialize_xfer("READ", here, there, agent.name), file
            except self._failures:
                agent.deregister_memory(file)
                raise

    @contextmanager
    def errors(self, kind: type[Exception]) -> Iterator[None]:
        """NIXL's errors as `kind`."""
        try:
            yield
        except self._failures as error:
            raise kind(f"{self.backend}: {type(error).__name__} {error}") from error


class Read:
    """A read on its way. Its file is let go of when it is done, and never if it failed."""

    def __init__(self, reader: "FileReader", transfer: Any, file: Any, fd: int) -> None:
        """Begin it. Raises ReadFailed."""
        self._reader, self._transfer, self._file, self._fd = reader, transfer, file, fd
        self._is_done = self._ask(reader.agent.transfer)

    def is_done(self) -> bool:
        """To be asked until it is. Raises ReadFailed."""
        if not self._is_done:
            self._is_done = self._ask(self._reader.agent.check_xfer_state)
        return self._is_done

    def _ask(self, call: Callable[[Any], str]) -> bool:
        try:
            with self._reader.errors(ReadFailed):
                return self._has_ended(call(self._transfer))
        except ReadFailed as error:
            self._reader.failed = str(error)
            raise

    def _has_ended(self, state: str) -> bool:
        if state == "PROC":
            return False
        if state != "DONE":
            raise ReadFailed(f"{self._reader.backend}: transfer state {state}")
        self._transfer.release()
        self._reader.agent.deregister_memory(self._file)
        os.close(self._fd)
        return True


def _open(path: str) -> int:
    """A descriptor, without O_DIRECT where the file system has none. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags)
