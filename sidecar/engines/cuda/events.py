"""The worker's events: a transfer begins when what it comes after has ended on the GPU.

They are polled, never waited for on a stream: a wait for a worker that has died cannot be
called back, and everything behind it would hang.
"""

import struct
from typing import Protocol

from sidecar.engines.cuda.driver import HANDLE_BYTES, Driver
from sidecar.engines.cuda.mappings import Mappings

# The isolated_ipc form: version, memory handle, offset of a word, value. Big-endian.
_TIMELINE = struct.Struct(">B64sQQ")
_TIMELINE_VERSION = 1
_WORD = 8
# lmcache's allocation for such words is so large: no more is touched where the driver does not
# tell how large it is.
_WORDS_BYTES = 4096 * _WORD
_HALF = 1 << 63


class BadEvent(ValueError):
    """Bytes that are no event."""


class Event(Protocol):
    """Something that happens on the GPU. To be closed once."""

    def is_done(self) -> bool:
        """Raises DriverError."""

    def close(self) -> None:
        """Raises DriverError."""


def open_event(handle: bytes, driver: Driver, mappings: Mappings, instance: int) -> Event:
    """The event that a worker, `instance`, sent. Raises BadEvent, HandleInUse or DriverError."""
    if len(handle) == HANDLE_BYTES:
        return _IpcEvent(handle, driver)
    if len(handle) == _TIMELINE.size and handle[0] == _TIMELINE_VERSION:
        if timeline_memory(handle) is None:
            return _NeverRecorded()
        return _TimelineEvent(handle, driver, mappings, instance)
    raise BadEvent(f"an event of {len(handle)} bytes, first {handle[:1]!r}")


def timeline_memory(handle: bytes) -> bytes | None:
    """The allocation in which an event's word lies; None if it has none."""
    if len(handle) != _TIMELINE.size:
        return None
    _, memory, _, value = _TIMELINE.unpack(handle)
    return memory if value else None


class _IpcEvent:
    """A CUDA event that the worker recorded before it sent the handle."""

    def __init__(self, handle: bytes, driver: Driver) -> None:
        self._driver = driver
        self._event = driver.open_event(handle)

    def is_done(self) -> bool:
        return self._driver.is_done(self._event)

    def close(self) -> None:
        self._driver.destroy_event(self._event)


class _NeverRecorded:
    """There is nothing to come after."""

    def is_done(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _TimelineEvent:
    """A word in the worker's device memory, which its stream raises to a value."""

    def __init__(self, handle: bytes, driver: Driver, mappings: Mappings, instance: int) -> None:
        _, self._memory, offset, self._value = _TIMELINE.unpack(handle)
        if offset % _WORD:
            raise BadEvent(f"a timeline word at {offset}")
        self._driver, self._mappings = driver, mappings
        address, size = mappings.acquire(self._memory, instance)
        self._word, size = address + offset, _WORDS_BYTES if size is None else size
        if offset + _WORD > size:
            self.close()
            raise BadEvent(f"a timeline word at {offset} of {size} bytes")

    def is_done(self) -> bool:
        """The value is reached or passed; the words wrap around."""
        ahead: int = (self._driver.read_word(self._word) - self._value) % (2 * _HALF)
        return ahead < _HALF

    def close(self) -> None:
        self._mappings.release(self._memory)
