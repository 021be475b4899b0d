"""Device memory between files and blocks: an object in each buffer."""

import logging
import time
from collections import deque
from collections.abc import Generator
from typing import Any, NamedTuple

from sidecar.engines.cuda.driver import OUT_OF_MEMORY, Driver, DriverError
from sidecar.engines.cuda.file_mover import CannotMove, FileMover

log = logging.getLogger(__name__)

_PAGE = 4096
# Together, but for a single larger one.
_MOST_BYTES = 256 << 20
_AGAIN_SECONDS = 60.0  # after which a GPU that had no memory left is asked once more


class Buffer(NamedTuple):
    """`size` bytes of device memory, known to the mover as `memory`."""

    address: int
    size: int
    memory: Any


class ObjectBuffers:
    """Buffers are kept for the next objects, until a larger one needs their memory.

    For the CUDA thread only.
    """

    def __init__(self, driver: Driver, mover: FileMover) -> None:
        """The first buffer shows whether device memory can be registered.

        Raises CannotMove and DriverError.
        """
        self._driver, self._mover = driver, mover
        self._idle: list[Buffer] = []
        self._waiting: deque[object] = deque()
        self._total = 0
        self._most, self._since = _MOST_BYTES, 0.0
        self.give_back(self._allocate(_PAGE))

    def wait(self, nbytes: int) -> Generator[None, None, Buffer]:
        """A buffer of at least `nbytes`, when it is there and those before us have theirs.

        Raises CannotMove, and DriverError if fatal.
        """
        place = object()
        self._waiting.append(place)
        try:
            while self._waiting[0] is not place or (buffer := self._take(nbytes)) is None:
                yield
                if self._mover.failed is not None:  # the buffer that is missing never comes
                    raise CannotMove(self._mover.failed)
        finally:
            self._waiting.remove(place)
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        self._idle.append(buffer)

    def _take(self, nbytes: int) -> Buffer | None:
        """None if one must be given back first."""
        fitting = [buffer for buffer in self._idle if buffer.size >= nbytes]
        if fitting:
            best = min(fitting, key=lambda buffer: buffer.size)
            self._idle.remove(best)
            return best
        size = -(-nbytes // _PAGE) * _PAGE
        if time.monotonic() - self._since > _AGAIN_SECONDS:
            self._most = _MOST_BYTES
        while self._idle and self._total + size > self._most:
            self._free(self._idle.pop())
        if self._total and self._total + size > self._most:
            return None
        try:
            return self._allocate(size)
        except DriverError as error:
            if error.code == OUT_OF_MEMORY and self._total:
                log.warning("buffers for files: there is room for %d MiB", self._total >> 20)
                self._most, self._since = self._total, time.monotonic()
                return None
            if error.is_fatal:
                raise
            raise CannotMove(f"a buffer on the GPU: {error}") from None

    def _allocate(self, size: int) -> Buffer:
        address = self._driver.allocate(size)
        try:
            memory = self._mover.register(address, size)
        except CannotMove:
            self._driver.free(address)
            raise
        self._total += size
        return Buffer(address, size, memory)

    def _free(self, buffer: Buffer) -> None:
        try:
            self._mover.deregister(buffer.memory)
        except CannotMove as error:
            self._mover.failed = str(error)  # its memory is lost, and so is the room for others
            raise
        self._driver.free(buffer.address)
        self._total -= buffer.size
