"""Which allocations of other processes are mapped, and how many times they are in use."""

from sidecar.engines.cuda.driver import (
    INVALID_CONTEXT,
    INVALID_VALUE,
    MAP_FAILED,
    Driver,
    DriverError,
)

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
