"""Step 2. The driver compiles the kernels, and they do what they do on the CPU."""

from __future__ import annotations

import numpy as np

from sidecar.engines.cuda.kernel_table import KernelTable
from tests.gpu.quick.gpu import MIB, Gpu, random_bytes
from tests.gpu.quick.report import Report
from tests.support.xxh3 import sums_of

_RUNS = (1, 3, 4, 12, 16, 48, 1024, 4096, 18432, 40_001)
_COUNT = 300
_OBJECTS = (248, 256, 1016, 1024, 1032, 4088, 4096, 4104, 65536, MIB + 8)


def run(report: Report) -> None:
    gpu = Gpu()
    report.check("the driver compiles them", gpu.has_kernels)
    if not gpu.has_kernels:
        return
    table = KernelTable(gpu)
    for run_bytes in _RUNS:
        _copies(report, gpu, table, run_bytes)
    for size in _OBJECTS:
        data = random_bytes(size, size)
        place = gpu.allocate(size)
        gpu.write(place, data)
        table.sum_object(place, size, gpu.stream)
        gpu.finish()
        report.same(f"sums of {size} bytes", table.sums() == sums_of(data.tobytes()).tolist())


def _copies(report: Report, gpu: Gpu, table: KernelTable, size: int) -> None:
    """From odd places with gaps, in another order, to places one after the other."""
    nbytes = _COUNT * (2 * size + 3)
    source, target = gpu.allocate(nbytes), gpu.allocate(_COUNT * size + 64)
    data, around = random_bytes(nbytes, size), random_bytes(_COUNT * size + 64, size + 1)
    gpu.write(source, data)
    gpu.write(target, around)
    order = np.random.default_rng(size).permutation(_COUNT)
    starts = 1 + 2 * order * (size + 1)
    to = target + np.arange(_COUNT) * size
    table.copy_runs(to, source + starts, np.full(_COUNT, size), gpu.stream)
    gpu.finish()
    expected = around.copy()
    for nth, start in enumerate(starts):
        expected[nth * size : (nth + 1) * size] = data[start : start + size]
    report.same(
        f"{_COUNT} runs of {size} bytes", np.array_equal(gpu.read(target, len(expected)), expected)
    )
    gpu.free(source)
    gpu.free(target)
