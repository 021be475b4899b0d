"""Step 1. Two processes: what the server's child rests on when a worker registers."""

from __future__ import annotations

import struct
import subprocess
import sys
from ctypes import byref, c_size_t, c_uint64

import numpy as np

from sidecar.engines.cuda.driver import DriverError
from tests.gpu.quick.gpu import MIB, Gpu, random_bytes, wait
from tests.gpu.quick.report import Report

_SIZES = {"whole": 4 * MIB, "cut from a block": 64 << 10}
_SEED, _VALUE = 5, 7
# What the exporting process sends: memory of each kind, an event, words.
_FORMAT = struct.Struct("64s64s64s64s64s")


def run(report: Report) -> None:
    gpu = Gpu()
    worker = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None and worker.stdout is not None
    try:
        *memories, event, word = _FORMAT.unpack(worker.stdout.read(_FORMAT.size))
        for name, handle, size in zip(
            _names(), memories, (*_SIZES.values(), 64 << 10), strict=True
        ):
            _memory(report, gpu, name, handle, size)
        opened, words = gpu.open_event(event), gpu.map_memory(word)[0]
        report.check("an event that is pending is not done", not gpu.is_done(opened))
        report.check("a word that is not written yet", gpu.read_word(words) < _VALUE)
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        seconds = wait(lambda: gpu.is_done(opened), "the event of the other process")
        report.figure("an event is seen after its stream was let go", 1e3 * seconds, "ms")
        wait(lambda: gpu.read_word(words) == _VALUE, "the word of the other process")
        report.check("a word that is written", True)
    finally:
        worker.kill()
        worker.wait()
    _torch(report, gpu)


def _names() -> list[str]:
    return [*_SIZES, "cut from the same block"]


def _memory(report: Report, gpu: Gpu, name: str, handle: bytes, size: int) -> None:
    """Map it, ask for its range, read it, map it again."""
    address, told = gpu.map_memory(handle)
    base, length = c_uint64(), c_size_t()
    code = gpu.cuda.functions.cuMemGetAddressRange_v2(byref(base), byref(length), c_uint64(address))
    where = f"code {code}, {address - base.value} bytes into {length.value}"
    report.fact(f"range of an import, {name}", where if not code else f"code {code}")
    report.check(f"size of an import, {name}", told is None or told >= size, str(told))
    seed = _SEED + _names().index(name)
    report.same(f"bytes, {name}", np.array_equal(gpu.read(address, size), random_bytes(size, seed)))
    try:
        again = gpu.map_memory(handle)[0]
        note = "the same address" if again == address else f"{again - address} bytes away"
        gpu.unmap_memory(again)
    except DriverError as error:
        note = str(error)
    report.fact(f"the same handle twice, {name}", note)


def _torch(report: Report, gpu: Gpu) -> None:
    """The handle that torch makes: version, type, and the driver's 64 bytes."""
    what = "torch's handles have 66 bytes, version 2 or 3, type c"
    try:
        import torch
    except ImportError:
        report.skip(what, "no torch")
        return
    if not torch.cuda.is_available():
        report.skip(what, "no CUDA build of torch")
        return
    handle = torch.ones(1 << 22, device="cuda").untyped_storage()._share_cuda_()[1]
    good = len(handle) == 66 and handle[0] in (2, 3) and handle[1:2] == b"c"
    report.check(what, good, f"{len(handle)} bytes, first {handle[:2]!r}")


def main() -> None:
    """The process that exports."""
    gpu, handles = Gpu(), []
    for seed, size in enumerate((*_SIZES.values(), 64 << 10), _SEED):
        address = gpu.allocate(size)
        gpu.write(address, random_bytes(size, seed))
        handles.append(gpu.memory_handle(address))
    words, event = gpu.allocate(32 << 10), gpu.new_shared_event()
    gpu.write(words, np.zeros(8, np.uint8))
    hold = gpu.hold(gpu.stream)
    gpu.write_word(words, _VALUE, gpu.stream)
    gpu.record(event, gpu.stream)
    handles += [gpu.event_handle(event), gpu.memory_handle(words)]
    sys.stdout.buffer.write(_FORMAT.pack(*handles))
    sys.stdout.flush()
    sys.stdin.readline()
    hold.release()
    sys.stdin.readline()  # until it is killed: what it exports must live


if __name__ == "__main__":
    main()
