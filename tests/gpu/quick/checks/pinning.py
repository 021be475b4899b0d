"""Step 3. Pinned memory of tmpfs, memory that is not pinned, and handles that are none."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np

from sidecar.engines.cuda.driver import DriverError
from tests.gpu.quick.gpu import MIB, Gpu, random_bytes
from tests.gpu.quick.report import Report

_PIECE = 64 * MIB
_HANDLES = 100
_HOST_POINTER = 91  # CUdevice_attribute


def run(report: Report) -> None:
    gpu = Gpu()
    memory = _tmpfs(2 * _PIECE)
    host, device = memory.ctypes.data, gpu.allocate(_PIECE)
    memory[:] = random_bytes(2 * _PIECE, 3)
    gpu.copy_one(device, host, _PIECE)
    gpu.finish()
    report.same("memory that is not pinned, to the GPU", _same(gpu, device, memory[:_PIECE]))
    start = time.perf_counter()
    try:
        first = gpu.pin(host, _PIECE)
    except DriverError as error:
        report.check("tmpfs is pinned", False, str(error))
        return
    report.figure("pin 64 MiB", 1e3 * (time.perf_counter() - start), "ms", at_most=15)
    second = gpu.pin(host + _PIECE, _PIECE)
    kept = first == host or not gpu.cuda.attribute(_HOST_POINTER)
    report.check("pinned memory has the address that attribute 91 promises", kept)
    gpu.copy_one(device, second, _PIECE)
    gpu.finish()
    report.same("memory that is pinned, to the GPU", _same(gpu, device, memory[_PIECE:]))
    gpu.copy_one(first, device, _PIECE)
    gpu.finish()
    report.same("and from it", np.array_equal(memory[:_PIECE], memory[_PIECE:]))
    report.fact("a copy over two pieces", _over_two(gpu, device, first))
    _handles(report, gpu)
    gpu.copy_one(device, first, _PIECE)
    gpu.finish()
    report.same("a copy after all that", _same(gpu, device, memory[:_PIECE]))


def _tmpfs(nbytes: int) -> np.ndarray:
    fd = os.memfd_create("quick")
    os.ftruncate(fd, nbytes)
    memory = mmap.mmap(fd, nbytes)
    os.close(fd)
    return np.frombuffer(memory, np.uint8)


def _same(gpu: Gpu, device: int, memory: np.ndarray) -> bool:
    return np.array_equal(gpu.read(device, len(memory)), memory)


def _over_two(gpu: Gpu, device: int, first: int) -> str:
    """cuda.h lets it fail with 1; where it passes we cut all the same."""
    try:
        gpu.copy_one(device, first + _PIECE - MIB, 2 * MIB)
        gpu.finish()
    except DriverError as error:
        return f"fails with {error.code}"
    return "passes"


def _handles(report: Report, gpu: Gpu) -> None:
    """They come from whoever reaches the port: a fatal code would cost all workers."""
    random = np.random.default_rng(0)
    handles = [bytes(64), b"\xff" * 64, *(random.bytes(64) for _ in range(_HANDLES))]
    opened, fatal = 0, set()
    for handle in handles:
        for opens in (gpu.map_memory, gpu.open_event):
            try:
                opens(handle)
                opened += 1
            except DriverError as error:
                if error.is_fatal:
                    fatal.add(error.code)
    report.check("what is no handle is not opened", not opened, f"{opened} were")
    report.check("and costs nothing", not fatal, f"codes {sorted(fatal)}" if fatal else "")
