"""Which allocations of other processes are mapped, and how many times they are in use."""

from collections.abc import Iterable
from dataclasses import dataclass

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


class HandleInUse(Exception):
    """The handle is that of memory which is mapped for another worker."""

    def __init__(self) -> None:
        super().__init__("its memory handle is that of another worker, whose memory is mapped")


@dataclass(slots=True)
class _Mapping:
    """An allocation at `address`, of `size` bytes if that is known, and how often it is in use."""

    owner: int
    address: int
    size: int | None
    uses: int = 0


class Mappings:
    """One mapping for each allocation, for the CUDA thread only.

    The driver maps an allocation once a process and one close unmaps it for all, so the uses
    are counted here. For a handle that is mapped it gives what is mapped, whoever sends it. But a
    container that has started anew may send the bytes that it sent in its former life, of which
    the memory is still mapped: so a mapping is its owner's, by instance id, which clients draw anew
    in each process, and nobody else gets it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mapped: dict[bytes, _Mapping] = {}

    def are_free(self, handles: Iterable[bytes], owner: int) -> bool:
        """Whether none of them is mapped for another worker than `owner`."""
        found = (self._mapped.get(handle) for handle in handles)
        return all(mapping is None or mapping.owner == owner for mapping in found)

    def acquire(self, handle: bytes, owner: int) -> tuple[int, int | None]:
        """Address of an allocation, and its size in bytes if the driver tells it.

        Raises HandleInUse and DriverError.
        """
        if not self.are_free([handle], owner):
            raise HandleInUse
        if handle not in self._mapped:
            self._mapped[handle] = _Mapping(owner, *self._driver.map_memory(handle))
        mapping = self._mapped[handle]
        mapping.uses += 1
        return mapping.address, mapping.size

    def release(self, handle: bytes) -> None:
        """End one use; the last one unmaps. Raises DriverError."""
        mapping = self._mapped[handle]
        mapping.uses -= 1
        if not mapping.uses:
            del self._mapped[handle]
            self._driver.unmap_memory(mapping.address)


def explain(error: DriverError) -> str:
    """Why memory could not be mapped, with what to do where that is known."""
    hint = _HINTS.get(error.code)
    return f"{error}: {hint}" if hint else str(error)
