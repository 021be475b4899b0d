"""Step 11. Runs of 4 KiB, which models at TP 8 have: idle, and beside prefill."""

from __future__ import annotations

import importlib.util
import mmap
from contextlib import ExitStack

import numpy as np

from bench.gpu.sweep import rate
from sidecar.engines.cuda.calibration import every_other
from sidecar.engines.cuda.lane import Lane
from sidecar.engines.cuda.pinning import PinnedArena
from tests.gpu.quick.gpu import MIB, SMALL, Gpu
from tests.gpu.quick.report import Report
from tests.gpu.quick.traffic import Traffic, pinned_server, wait_pinned
from tests.support.raw import RawClient

_RUN, _LAYERS = 4096, 32
_LANE_BYTES = (4 if SMALL else 128) * MIB
_REQUEST_BYTES, _L1_GB = (2 * MIB, 0.25) if SMALL else (512 * MIB, 4)
_TURNS = 1 if SMALL else 5
_FEW_BLOCKS = 6


def run(report: Report) -> None:
    gpu = Gpu()
    _lanes(report, gpu, "idle")
    if not _has_torch():
        report.skip("lanes beside prefill", "no CUDA build of torch")
    else:
        with _prefill():
            _lanes(report, gpu, "beside prefill")
    with pinned_server(_L1_GB) as server, RawClient(server.url) as client:
        traffic = Traffic(gpu, client, _RUN, _LAYERS, _REQUEST_BYTES)
        wait_pinned(server, _L1_GB)
        idle = traffic.rates(_TURNS)
        traffic.check()
        report.figure("store, Llama TP8, idle GPU", idle[0], "GB/s")
        report.figure("load, Llama TP8, idle GPU", idle[1], "GB/s", at_least=45)
        if not _has_torch():
            report.skip("the same beside prefill", "no CUDA build of torch")
            return
        with _prefill():
            busy = traffic.rates(_TURNS)
        traffic.check()
        report.figure("store, beside prefill", 100 * busy[0] / idle[0], "% of idle", at_least=60)
        report.figure("load, beside prefill", 100 * busy[1] / idle[1], "% of idle", at_least=60)


def _lanes(report: Report, gpu: Gpu, when: str) -> None:
    """Grids and numbers of streams, without a server."""
    if not gpu.has_kernels:
        report.skip(f"lanes, {when}", "no kernels")
        return
    memory = np.frombuffer(mmap.mmap(-1, _LANE_BYTES), np.uint8)
    arena = PinnedArena(gpu, memory.ctypes.data, _LANE_BYTES)
    device, everything = gpu.allocate(2 * _LANE_BYTES), gpu.kernel_blocks
    runs = every_other(device, _RUN, _LANE_BYTES // _RUN)
    for blocks in (_FEW_BLOCKS, everything):
        for streams in (1, 4):
            gpu.kernel_blocks = blocks
            lane = Lane(gpu, arena, is_store=False, in_flight=streams)
            what = f"load, kernel on {blocks} blocks, {streams} stream(s), {when}"
            report.figure(what, rate(lane, runs, _RUN + 1), "GB/s")
            lane.free()
    gpu.kernel_blocks = everything
    gpu.free(device)


def _has_torch() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _prefill() -> ExitStack:
    from bench.gpu.background import Background
    from bench.gpu.inference import prefill

    stack = ExitStack()
    stack.enter_context(Background(prefill))
    return stack
