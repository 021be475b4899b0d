"""What a child needs of a GPU's driver: some twenty calls on ints and bytes.

`libcuda` is the real one; tests bring a fake whose device memory is shared memory.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint64]
# "auto": but for drivers and GPUs on which batches are known to crash.
Batches = Literal["auto", "true", "false"]

HANDLE_BYTES = 64  # of a CUipcMemHandle and of a CUipcEventHandle

INVALID_VALUE, OUT_OF_MEMORY = 1, 2
_INVALID_DEVICE, INVALID_CONTEXT, MAP_FAILED, _ALREADY_MAPPED = 101, 201, 205, 208
_PEER_LIMIT, _SYSTEM_CALL_FAILED, _INVALID_HANDLE = (217, 711), 304, 400
_NOT_FOUND, _ALREADY_PINNED, _NOT_PINNED = 500, 712, 713
_NOT_PERMITTED, _NOT_SUPPORTED = 800, 801
# A call that fails with one of these has done nothing. After any other code nothing that the
# process does with CUDA can be relied on, the illegal address (700) first of all.
_HARMLESS = {
    INVALID_VALUE, OUT_OF_MEMORY, _INVALID_DEVICE, INVALID_CONTEXT, MAP_FAILED, _ALREADY_MAPPED,
    *_PEER_LIMIT, _SYSTEM_CALL_FAILED, _INVALID_HANDLE,
    _NOT_FOUND, _ALREADY_PINNED, _NOT_PINNED, _NOT_PERMITTED, _NOT_SUPPORTED,
}  # fmt: skip
# Of these cuda.h says that all later calls fail until the process is another: memory errors of the
# GPU (214, 226), faults of kernels, an MPS server that has ended the client, a device that is lost.
_STICKY = {214, 226, 700, 702, 710, *range(714, 720), 721, 810, 911}
# The driver does not start with these until somebody changes the machine: a stub library, no GPU,
# parts of two driver versions, a compat library without its kind of GPU. What else it says may
# pass: a fabric manager that is starting (802), a GPU that recovers (46, 999).
FINAL_AT_START = {34, 100, 803, 804}
# The driver compiles the kernels when a child starts. Why it cannot, and what would help; it may
# have other reasons, of which nothing is known.
NO_KERNEL = {
    OUT_OF_MEMORY: "the GPU has no memory left for them",
    209: "it has no code for this GPU, which is older than sm_70",
    218: "its compiler refuses them: libnvidia-ptxjitcompiler.so.1 is not of the driver's version",
    221: "install libnvidia-ptxjitcompiler.so.1 of the driver's version; in a container "
    "NVIDIA_DRIVER_CAPABILITIES=compute brings it",
    222: "update the driver",
    223: "unset CUDA_DISABLE_PTX_JIT",
}


class DriverError(Exception):
    """A driver call failed with `code` (CUresult)."""

    def __init__(self, call: str, code: int, name: str = "") -> None:
        super().__init__(f"{call}: {name or 'CUDA error'} ({code})")
        self.code = code

    @property
    def is_fatal(self) -> bool:
        """Whether the process must be replaced."""
        return self.code not in _HARMLESS

    @property
    def is_sticky(self) -> bool:
        """Whether every later call fails, too."""
        return self.code in _STICKY


class DriverMissing(Exception):
    """There is no driver, or no GPU that it shows us; the text says which.

    With `is_final` that stays so; else it may pass.
    """

    def __init__(self, reason: str, is_final: bool = True) -> None:
        super().__init__(reason)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class Device:
    """The one GPU of this process. `driver` is the CUDA version it supports, as 12080 for 12.8.

    `uuid` is hexadecimal, without prefix and dashes. `has_batches`: copies are begun many at a
    time. `has_mps`: kernels of several processes run at once.
    """

    name: str
    uuid: str
    bus_id: str
    multiprocessors: int
    driver: int
    has_batches: bool
    has_mps: bool = False


def plain_uuid(uuid: str) -> str:
    """A UUID of a GPU, or of a MIG instance, without prefix and dashes."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").replace("-", "").lower()


class Driver(Protocol):
    """One GPU, used by one thread. Streams, events and addresses are ints.

    All but `open` raise DriverError. `has_kernels`: whether there is what
    `copy_runs` and `sum_objects` begin.
    """

    has_kernels: bool

    def open(self, batches: Batches) -> Device:
        """Make the GPU's primary context current on this thread. Raises DriverMissing.

        `batches`: whether copies are begun many at a time, where the driver can take them.
        """

    def map_memory(self, handle: bytes) -> tuple[int, int | None]:
        """Map another process's allocation: its address here, and its size in bytes if known."""

    def unmap_memory(self, address: int) -> None: ...

    def open_event(self, handle: bytes) -> int:
        """Another process's event."""

    def share_event(self) -> bytes:
        """An event that has happened and that other processes can open: its handle (64 bytes).

        It lasts for as long as this process.
        """

    def new_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def is_done(self, event: int) -> bool:
        """Whether what was recorded last has ended; an event never recorded is done."""

    def new_stream(self) -> int: ...

    def allocate(self, nbytes: int) -> int:
        """Device memory."""

    def free(self, address: int) -> None:
        """Free device memory that nothing uses any more."""

    def allocate_host(self, nbytes: int) -> int:
        """Pinned host memory."""

    def free_host(self, address: int) -> None:
        """Free pinned host memory that nothing uses any more."""

    def pin(self, address: int, nbytes: int) -> int:
        """Pin whole pages of host memory; the address by which copies name them."""

    def copy(
        self, to: Addresses, source: Addresses, sizes: Addresses, stream: int, batched: bool
    ) -> None:
        """Begin copies that do not overlap; reads come after what the stream did before.

        No copy may span two pinned pieces. Only with `batched` in one call, if there is such
        a call: it wants pinned memory. On an error any of them may have begun.
        """

    def copy_runs(self, table: int, runs: int, stream: int) -> None:
        """Begin a kernel that copies runs within device memory.

        `table` is device memory: `runs` words (uint64) each of destinations, sources, sizes.
        """

    def sum_objects(self, table: int, objects: int, stream: int) -> None:
        """Begin a kernel that makes the eight accumulators of xxh3 over each object.

        `table` is device memory: `objects` words (uint64) each of addresses and sizes, then
        eight words an object for the sums. Addresses and sizes are multiples of 8, and sizes
        more than 240 bytes.
        """

    def read_word(self, address: int) -> int:
        """The uint64 at a device address, now."""
