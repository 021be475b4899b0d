"""Step 4. Batches of copies, which have been seen to crash and to hang."""

from __future__ import annotations

import mmap

import numpy as np

from sidecar.engines.cuda.driver import DriverError
from tests.gpu.quick.gpu import MIB, SMALL, Gpu, random_bytes, words
from tests.gpu.quick.report import Report, Skipped

_COPIES, _COPY_BYTES = 4096, 4096
_TURNS = 20 if SMALL else 500


def run(report: Report) -> None:
    gpu = Gpu()
    if not gpu.about.has_batches:
        raise Skipped(f"the driver is for CUDA {gpu.about.driver}")
    nbytes = _COPIES * _COPY_BYTES
    memory = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
    memory[:] = random_bytes(nbytes, 4)
    host, device = gpu.pin(memory.ctypes.data, nbytes), gpu.allocate(nbytes)
    report.fact("on the legacy stream", _on_the_legacy_stream(gpu, host, device))
    order = np.random.default_rng(4).permutation(_COPIES).astype(np.uint64) * _COPY_BYTES
    places = np.arange(_COPIES, dtype=np.uint64) * _COPY_BYTES
    sizes = np.full(_COPIES, _COPY_BYTES, np.uint64)
    for _ in range(_TURNS):
        gpu.copy(places + device, order + host, sizes, gpu.stream, batched=True)
        gpu.finish()
    expected = memory.reshape(_COPIES, -1)[order.astype(np.int64) // _COPY_BYTES].ravel()
    what = f"{_TURNS} batches of {_COPIES} copies"
    report.same(f"{what} to the GPU", np.array_equal(gpu.read(device, nbytes), expected))
    memory[:] = 0
    for _ in range(_TURNS):
        gpu.copy(order + host, places + device, sizes, gpu.stream, batched=True)
        gpu.finish()
    report.same(f"{what} from it", np.array_equal(memory, random_bytes(nbytes, 4)))
    report.fact("a bad pointer", _bad_pointer(gpu, host, device))


def _on_the_legacy_stream(gpu: Gpu, host: int, device: int) -> str:
    """It must be refused; ours are others."""
    try:
        gpu.copy(words(device, device + MIB), words(host, host), words(MIB, MIB), 0, batched=True)
    except DriverError as error:
        return str(error)
    return "passes"


def _bad_pointer(gpu: Gpu, host: int, device: int) -> str:
    """Where the GPU reads the host's memory (HMM) this may end the process: it comes last."""
    try:
        gpu.copy(words(device, 8), words(host, host), words(4096, 4096), gpu.stream, batched=True)
    except DriverError as error:
        return f"{error}, {'fatal' if error.is_fatal else 'harmless'}"
    return "passes"
