"""A GPU's driver without a GPU, and the child process that uses it.

Device memory is shared memory, so that two processes see the same bytes; streams are threads;
IPC events are words in shared memory. It is strict where the real driver is: a copy that leaves
its allocation is an illegal address, one that spans two pinned pieces is refused.

FAKE_GPU_FAULTS names a file: a JSON list of {"call": name, "nth": n from 1 (0 = each), "code":
CUresult} or, in place of `code`, "delay" in seconds; counted from when the file was written. With
{"call": "size"} and any code the driver does not tell how large what it maps is.
FAKE_GPU_SECONDS shortens all deadlines of the child. FAKE_GPU_PCI is in place of sysfs' folder of
PCI devices.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.engines.cuda import child, lane, numa, process
from sidecar.engines.cuda.driver import Addresses, Batches, Device, DriverError, DriverMissing
from sidecar.engines.cuda.plan import SHORT_BYTES
from tests.support.xxh3 import sums_of

SHM = Path("/dev/shm")
PREFIX = "fakegpu_"
UUID = "GPU-00000000-1111-2222-3333-444444444444"
OTHER_UUID = "GPU-99999999-1111-2222-3333-444444444444"
BUS = {UUID: "0000:00:00.0", OTHER_UUID: "0000:00:01.0"}
ILLEGAL = 700


def handle_of(name: str) -> bytes:
    """The 64-byte handle of shared device memory or of an event."""
    return name.encode().ljust(64, b"\0")


class FakeDriver:
    """`Driver` over this process's own memory."""

    has_kernels = True

    def __init__(self) -> None:
        self._faults = _Faults(os.environ.get("FAKE_GPU_FAULTS"))
        self._ids = itertools.count(1)
        self._device: dict[int, int] = {}  # address -> size
        self._pinned: dict[int, int] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._opened: set[bytes] = set()
        self._handles: dict[int, bytes] = {}
        self._events: dict[int, threading.Event | mmap.mmap | None] = {}
        self._streams: dict[int, queue.SimpleQueue[Callable[[], None]]] = {}
        self._kept: list[Any] = []
        self._sticky = 0
        self.calls: Counter[str] = Counter()

    def open(self, batches: Batches) -> Device:
        uuid = os.environ.get("CUDA_VISIBLE_DEVICES", UUID)
        if uuid not in BUS:
            raise DriverMissing("the NVIDIA driver shows no such GPU to this process")
        self._call("open")
        return Device("Fake", uuid, BUS[uuid], 132, 12080, batches != "false")

    def map_memory(self, handle: bytes) -> tuple[int, int | None]:
        self._call("map_memory")
        if handle in self._opened:
            raise DriverError("map_memory", 208)
        memory = _open_shm(handle)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._opened.add(handle)
        self._handles[address] = handle
        self._mapped[address] = memory
        self._device[address] = len(memory)
        return address, None if self._faults.of("size") else len(memory)

    def unmap_memory(self, address: int) -> None:
        self._call("unmap_memory")
        self._opened.remove(self._handles.pop(address))
        del self._device[address], self._mapped[address]

    def open_event(self, handle: bytes) -> int:
        self._call("open_event")
        event = next(self._ids)
        self._events[event] = _open_shm(handle)
        return event

    def share_event(self) -> bytes:
        self._call("share_event")
        owner = os.environ.get("FAKE_GPU_OWNER", os.getpid())  # who removes it
        name = f"{PREFIX}{owner}_event_{os.getpid()}_{next(self._ids)}"
        (SHM / name).write_bytes(b"\1")
        return handle_of(name)

    def new_event(self) -> int:
        self._call("new_event")
        event = next(self._ids)
        self._events[event] = None
        return event

    def destroy_event(self, event: int) -> None:
        self._call("destroy_event")
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._call("record")
        done = threading.Event()
        self._events[event] = done
        self._streams[stream].put(done.set)

    def is_done(self, event: int) -> bool:
        self._call("is_done")
        state = self._events[event]
        if isinstance(state, mmap.mmap):
            return state[0] != 0
        return state is None or state.is_set()

    def new_stream(self) -> int:
        self._call("new_stream")
        stream = next(self._ids)
        work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._streams[stream] = work
        threading.Thread(target=self._stream, args=(work,), daemon=True).start()
        return stream

    def allocate(self, nbytes: int) -> int:
        self._call("allocate")
        address = self._keep(nbytes)
        self._device[address] = nbytes
        return address

    def free(self, address: int) -> None:
        self._call("free")
        del self._device[address]

    def allocate_host(self, nbytes: int) -> int:
        self._call("allocate_host")
        address = self._keep(nbytes)
        self._pinned[address] = nbytes
        return address

    def free_host(self, address: int) -> None:
        self._call("free_host")
        del self._pinned[address]

    def pin(self, address: int, nbytes: int) -> int:
        self._call("pin")
        assert not any(_overlap(address, nbytes, *piece) for piece in self._pinned.items())
        self._pinned[address] = nbytes
        return address

    def copy(
        self, to: Addresses, source: Addresses, sizes: Addresses, stream: int, batched: bool
    ) -> None:
        self._call("copy")
        runs = list(zip(to.tolist(), source.tolist(), sizes.tolist(), strict=True))
        for target, origin, size in runs:
            for address in (target, origin):
                if not self._is_device(address, size):
                    self._check_host(address, size, batched)
        self._streams[stream].put(lambda: self._move(runs))

    def copy_runs(self, table: int, runs: int, stream: int) -> None:
        self._call("copy_runs")

        def kernel() -> None:
            size = 3 * runs * 8
            if not self._is_device(table, size):
                self._sticky = ILLEGAL
                return
            words = np.frombuffer(ctypes.string_at(table, size), np.uint64).reshape(3, runs)
            moves = list(zip(*words.tolist(), strict=True))
            inside = [self._is_device(t, n) and self._is_device(s, n) for t, s, n in moves]
            self._move(moves if all(inside) else [(0, 0, 1)])

        self._streams[stream].put(kernel)

    def sum_objects(self, table: int, objects: int, stream: int) -> None:
        self._call("sum_objects")

        def kernel() -> None:
            if not self._is_device(table, 80 * objects):
                self._sticky = ILLEGAL
                return
            words = np.frombuffer(ctypes.string_at(table, 16 * objects), np.uint64).tolist()
            for row, held in enumerate(zip(words[:objects], words[objects:], strict=True)):
                if not self._is_object(*held):
                    self._sticky = ILLEGAL
                    return
                sums = sums_of(ctypes.string_at(*held)).tobytes()
                ctypes.memmove(table + 16 * objects + 64 * row, sums, len(sums))

        self._streams[stream].put(kernel)

    def read_word(self, address: int) -> int:
        self._call("read_word")
        if not self._is_device(address, 8):
            self._sticky = ILLEGAL
            self._call("read_word")
        return ctypes.c_uint64.from_address(address).value

    def _keep(self, nbytes: int) -> int:
        memory = (ctypes.c_char * nbytes)()
        self._kept.append(memory)
        return ctypes.addressof(memory)

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self._sticky:
            raise DriverError(name, self._sticky)
        code = self._faults.of(name)
        if code:
            if DriverError(name, code).is_fatal:
                self._sticky = code
            raise DriverError(name, code)

    def _is_device(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + length
            for start, length in self._device.items()
        )

    def _is_object(self, address: int, size: int) -> bool:
        return self._is_device(address, size) and not (address | size) % 8 and size > 240

    def _check_host(self, address: int, size: int, batched: bool) -> None:
        touched = [piece for piece in self._pinned.items() if _overlap(address, size, *piece)]
        whole = len(touched) == 1 and touched[0][0] <= address
        whole = whole and address + size <= sum(touched[0])
        if not whole and (touched or batched):
            raise DriverError("copy", 1)

    def _move(self, runs: list[tuple[int, int, int]]) -> None:
        for target, source, size in runs:
            if not target or not source:
                self._sticky = ILLEGAL
                return
            ctypes.memmove(target, source, size)

    def _stream(self, work: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            operation = work.get()
            delay = self._faults.stream_delay()
            if delay:
                time.sleep(delay)
            if not self._sticky:
                operation()


class Uncalibrated:
    """In place of `Calibration`: its calls would be among those that faults count."""

    def __init__(self, driver: FakeDriver) -> None:
        self.short_bytes = {True: SHORT_BYTES, False: SHORT_BYTES}

    def advance(self) -> bool:
        return False


class _Faults:
    """What is to go wrong, from the file."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._written = 0
        self._wanted: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def of(self, name: str) -> int:
        """The code with which this call fails, 0 if it does not."""
        self._reload()
        self._counts[name] += 1
        for fault in self._wanted:
            if fault["call"] == name and fault.get("nth", 0) in (0, self._counts[name]):
                time.sleep(fault.get("delay", 0))
                return int(fault.get("code", 0))
        return 0

    def stream_delay(self) -> float:
        """For how long each operation on a stream takes: the call "stream"."""
        self._reload()
        return sum(fault["delay"] for fault in self._wanted if fault["call"] == "stream")

    def _reload(self) -> None:
        if self._path is None:
            return
        try:
            written = os.stat(self._path).st_mtime_ns
        except FileNotFoundError:
            return
        if written != self._written:
            self._written = written
            self._wanted = json.loads(Path(self._path).read_text())
            self._counts.clear()


def _open_shm(handle: bytes) -> mmap.mmap:
    name = handle.rstrip(b"\0").decode(errors="replace")
    if not name.startswith(PREFIX) or not (SHM / name).exists():
        raise DriverError("open", 1)
    with (SHM / name).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _overlap(start: int, size: int, other: int, length: int) -> bool:
    return start < other + length and other < start + size


if __name__ == "__main__":
    from tests.support import fake_files

    child.FileMover = fake_files.FakeMover  # type: ignore[assignment, misc]
    child.Calibration = Uncalibrated  # type: ignore[assignment, misc]
    seconds = float(os.environ.get("FAKE_GPU_SECONDS", 0))
    if seconds:
        child._EVENT_SECONDS = child._HOLD_SECONDS = lane.STEP_SECONDS = seconds
    process.PCI_DEVICES = numa.PCI_DEVICES = Path(os.environ.get("FAKE_GPU_PCI", "/none"))  # type: ignore[attr-defined]
    process.main(FakeDriver(), sys.argv[1:])
