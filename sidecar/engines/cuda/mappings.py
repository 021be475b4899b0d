"""Which allocations of other processes are mapped, and how many times they are in use."""

import os
import re
import sys
from contextlib import suppress

from sidecar.cache.segment import SHM_DIR
from sidecar.engines.cuda.driver import (
    INVALID_CONTEXT,
    INVALID_VALUE,
    MAP_FAILED,
    Driver,
    DriverError,
)

# torch's counters of shared storages: `/torch_<pid>_<random>`, newer with a suffix.
_COUNTERS = re.compile(r"/(torch_[A-Za-z0-9_]{1,100})")
_COUNTER_BYTES = 8
_HINTS = {
    INVALID_VALUE: "the memory is gone, or is not cudaMalloc's",
    INVALID_CONTEXT: "the worker has the same process id as the sidecar's child: share one PID "
    "namespace, or let them differ",
    MAP_FAILED: "the container runtime does not share this GPU's memory between containers",
}


class Mappings:
    """One mapping for each allocation, for the CUDA thread only.

    The driver maps an allocation once a process and one close unmaps it for all, so the uses
    are counted here.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mapped: dict[bytes, tuple[int, int]] = {}
        self._uses: dict[bytes, int] = {}

    def acquire(self, handle: bytes) -> tuple[int, int]:
        """Address and size in bytes of an allocation. Raises DriverError."""
        if handle not in self._mapped:
            self._mapped[handle] = self._driver.map_memory(handle)
        self._uses[handle] = self._uses.get(handle, 0) + 1
        return self._mapped[handle]

    def release(self, handle: bytes) -> None:
        """End one use; the last one unmaps. Raises DriverError."""
        self._uses[handle] -= 1
        if not self._uses[handle]:
            del self._uses[handle]
            address, _ = self._mapped.pop(handle)
            self._driver.unmap_memory(address)


def explain(error: DriverError) -> str:
    """Why memory could not be mapped, with what to do where that is known."""
    hint = _HINTS.get(error.code)
    return f"{error}: {hint}" if hint else str(error)


def release_counter(name: str, index: int) -> None:
    """Tell torch in the worker that one share of a storage has ended.

    Until then it keeps the memory when it is freed. A worker that is dead has no file.
    """
    match = _COUNTERS.fullmatch(name)
    if match is None:
        return
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):
        fd = os.open(SHM_DIR / match[1], flags)
        try:
            at = index * _COUNTER_BYTES
            count = int.from_bytes(os.pread(fd, _COUNTER_BYTES, at), sys.byteorder)
            if count == 1:  # nobody else changes it: it counts this one share
                os.pwrite(fd, bytes(_COUNTER_BYTES), at)
        finally:
            os.close(fd)
