"""Between files and GPU memory by NIXL: GDS and GDS_MT, which use cuFile."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sidecar import nixl


class CannotMove(Exception):
    """The object cannot be read or written; nothing touches its memory any more."""


class MoveFailed(Exception):
    """A copy failed after its begin: it may still read or write its memory.

    NIXL's GDS reports the first part that fails and cancels the others, and cuFile does not
    promise that those are over then. What they leave in its queues would pass for the end of
    later copies, so there are none.
    """


class FileMover:
    """A NIXL agent with one backend. For one thread.

    The start takes seconds. A call may do all of what it begins or asks for: NIXL's GDS does
    where cuFile copies by way of host memory.
    """

    def __init__(self, backend: str, params: Mapping[str, str]) -> None:
        """Start it, which takes a second or two. Raises CannotMove."""
        try:
            api = nixl.load()
        except nixl.NixlMissing as error:
            raise CannotMove(str(error)) from None
        self._failures = nixl.failures(api)
        self.backend = backend
        self.failed: str | None = None
        """Why nothing can be begun any more."""
        with self.errors(CannotMove):
            self.agent = nixl.new_agent(api, backend, params)

    def register(self, address: int, size: int) -> Any:
        """Make device memory known, for `deregister`. Raises CannotMove."""
        with self.errors(CannotMove):
            return self.agent.register_memory([(address, size, 0, "")], "VRAM")

    def deregister(self, memory: Any) -> None:
        """Forget memory that will be freed. Raises CannotMove: then it may not be freed."""
        with self.errors(CannotMove):
            self.agent.deregister_memory(memory)

    def begin(self, path: str, offset: int, size: int, address: int, is_store: bool) -> "FileCopy":
        """Begin to read bytes of a file into registered memory, or to write them from there.

        The file has that length already. Raises CannotMove if nothing has begun, MoveFailed if
        something may have.
        """
        if self.failed is not None:
            raise CannotMove(self.failed)
        try:
            fd = _open(path, is_store)
        except OSError as error:
            raise CannotMove(f"{path}: {error.strerror}") from None
        try:
            transfer, file = self._prepare(fd, path, offset, size, address, is_store)
        except CannotMove:
            os.close(fd)
            raise
        return FileCopy(self, transfer, file, fd)

    def _prepare(
        self, fd: int, path: str, offset: int, size: int, address: int, is_store: bool
    ) -> tuple[Any, Any]:
        length = os.fstat(fd).st_size
        if length < offset + size:
            raise CannotMove(f"{path}: {length} bytes, of which {offset + size} are needed")
        agent, operation = self.agent, "WRITE" if is_store else "READ"
        with self.errors(CannotMove):
            file = agent.register_memory([(offset, size, fd, "")], "FILE")
            try:
                here = agent.get_xfer_descs([(address, size, 0)], "VRAM")
                there = agent.get_xfer_descs([(offset, size, fd)], "FILE")
                return agent.initialize_xfer(operation, here, there, agent.name), file
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


class FileCopy:
    """A copy on its way. Its file is let go of when it is done, and never if it failed."""

    def __init__(self, mover: "FileMover", transfer: Any, file: Any, fd: int) -> None:
        """Begin it. Raises MoveFailed."""
        self._mover, self._transfer, self._file, self._fd = mover, transfer, file, fd
        self._is_done = self._ask(mover.agent.transfer)

    def is_done(self) -> bool:
        """To be asked until it is. Raises MoveFailed."""
        if not self._is_done:
            self._is_done = self._ask(self._mover.agent.check_xfer_state)
        return self._is_done

    def _ask(self, call: Callable[[Any], str]) -> bool:
        try:
            with self._mover.errors(MoveFailed):
                return self._has_ended(call(self._transfer))
        except MoveFailed as error:
            self._mover.failed = str(error)
            raise

    def _has_ended(self, state: str) -> bool:
        if state == "PROC":
            return False
        if state != "DONE":
            raise MoveFailed(f"{self._mover.backend}: transfer state {state}")
        self._transfer.release()
        self._mover.agent.deregister_memory(self._file)
        os.close(self._fd)
        return True


def _open(path: str, is_store: bool) -> int:
    """A descriptor, without O_DIRECT where the file system has none. Raises OSError.

    No FIFO is waited for that has come under the path, and what is no file of this name is
    refused. (cuFile takes no descriptor that was opened with O_NOFOLLOW.)
    """
    flags = (os.O_RDWR if is_store else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, flags)
    try:
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return fd
