"""Memory, events and streams of a process that needs the driver alone, for others to map."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from sidecar.engines.cuda.cuda_h import Handle
from sidecar.engines.cuda.driver import Addresses, Device
from sidecar.engines.cuda.libcuda import LibCuda

MIB = 1 << 20
WAIT_SECONDS = 10.0
SMALL = bool(os.environ.get("GPU_QUICK_SMALL"))
BATCHES = bool(os.environ.get("GPU_QUICK_BATCHES"))
_INTERPROCESS_WITHOUT_TIMING = 4 | 2


class Gpu(LibCuda):
    """The driver interface and what a worker has beside it. All methods raise DriverError."""

    def __init__(self) -> None:
        """Raises DriverMissing."""
        os.environ["CUDA_VISIBLE_DEVICES"] = first_gpu()
        self.about: Device = self.open("true" if BATCHES else "false")
        self.stream = self.new_stream()

    def memory_handle(self, address: int) -> bytes:
        """64 bytes by which another process maps an allocation."""
        handle = Handle()
        self.cuda.call("cuIpcGetMemHandle", byref(handle), c_uint64(address))
        return bytes(handle)

    def new_shared_event(self) -> int:
        event = c_void_p()
        self.cuda.call("cuEventCreate", byref(event), c_uint(_INTERPROCESS_WITHOUT_TIMING))
        return event.value or 0

    def event_handle(self, event: int) -> bytes:
        handle = Handle()
        self.cuda.call("cuIpcGetEventHandle", byref(handle), c_void_p(event))
        return bytes(handle)

    def write_word(self, address: int, value: int, stream: int) -> None:
        """Write a uint64 when the stream has come here."""
        arguments = c_uint64(address), c_uint64(value), c_uint(0)
        self.cuda.call("cuStreamWriteValue64_v2", c_void_p(stream), *arguments)

    def hold(self, stream: int) -> Hold:
        """Let the stream do nothing more until `release`."""
        return Hold(self, stream)

    def write(self, address: int, data: np.ndarray) -> None:
        pointer = c_void_p(data.ctypes.data)
        self.cuda.call("cuMemcpyHtoD_v2", c_uint64(address), pointer, c_size_t(data.nbytes))

    def read(self, address: int, nbytes: int) -> np.ndarray:
        data = np.empty(nbytes, np.uint8)
        pointer = c_void_p(data.ctypes.data)
        self.cuda.call("cuMemcpyDtoH_v2", pointer, c_uint64(address), c_size_t(nbytes))
        return data

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self.cuda.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def copy_one(self, to: int, source: int, nbytes: int, stream: int | None = None) -> None:
        """Begin one copy, on our stream by default."""
        stream = self.stream if stream is None else stream
        self.copy(words(to), words(source), words(nbytes), stream, False)

    def finish(self, stream: int | None = None) -> None:
        """Wait until the stream has come here. Raises TimeoutError."""
        event = self.new_event()
        self.record(event, self.stream if stream is None else stream)
        wait(lambda: self.is_done(event), "the end of a stream")
        self.destroy_event(event)


class Hold:
    """A stream that waits for a word of pinned memory, which nobody but us writes."""

    def __init__(self, gpu: Gpu, stream: int) -> None:
        self._word = gpu.allocate_host(8)
        ctypes.c_uint64.from_address(self._word).value = 0
        arguments = c_uint64(self._word), c_uint64(1), c_uint(0)
        gpu.cuda.call("cuStreamWaitValue64_v2", c_void_p(stream), *arguments)

    def release(self) -> None:
        ctypes.c_uint64.from_address(self._word).value = 1


def words(*values: int) -> Addresses:
    return np.array(values, np.uint64)


def random_bytes(nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def wait(
    condition: Callable[[], object],
    what: str,
    seconds: float = WAIT_SECONDS,
    pause: float = 1e-4,
) -> float:
    """Seconds until `condition()`, asked with pauses. Raises TimeoutError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
    return time.monotonic() - start


def first_gpu() -> str:
    """What CUDA_VISIBLE_DEVICES names first; the first GPU if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
