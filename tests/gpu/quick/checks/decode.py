"""Step 12. What a step of decode takes beside transfers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from bench.common import Span
from bench.gpu.background import Background
from bench.gpu.inference import decode
from tests.gpu.quick.gpu import MIB, Gpu
from tests.gpu.quick.report import Report, Skipped
from tests.gpu.quick.traffic import Traffic, pinned_server, wait_pinned
from tests.support.raw import RawClient

_L1_GB, _REQUEST_BYTES, _LAYERS = 4, 32 * MIB, 32
_RUNS = {"short": 4096, "long": 64 << 10}
_RATES = (2.7e9, 10e9)  # bytes a second, both directions together
_SECONDS, _SETTLE = 3.0, 1.0


def run(report: Report) -> None:
    import torch

    if not torch.cuda.is_available():
        raise Skipped("no CUDA build of torch")
    gpu = Gpu()
    with Background(decode) as inference:
        for name, run_bytes in _RUNS.items():
            with pinned_server(_L1_GB) as server, RawClient(server.url) as client:
                traffic = Traffic(gpu, client, run_bytes, _LAYERS, _REQUEST_BYTES)
                wait_pinned(server, _L1_GB)
                for rate in _RATES:
                    _cost(report, inference, traffic, name, rate)
                traffic.check()


def _cost(report: Report, inference: Background, traffic: Traffic, name: str, rate: float) -> None:
    """How much longer a step takes; alone before and after."""
    alone = inference.during(_SECONDS)
    moving = _Moving(traffic, rate)
    time.sleep(_SETTLE)
    inference.steps()
    beside = inference.during(_SECONDS)
    speed = moving.stop()
    alone += inference.during(_SECONDS)
    for percent in (50, 99):
        before, now = (_percentile(spans, percent) for spans in (alone, beside))
        what = f"decode p{percent} beside {name} runs at {rate / 1e9:.1f} GB/s"
        note = f"{1e3 * before:.2f} ms, {1e3 * now:.2f} beside {speed / 1e9:.1f} GB/s"
        most = 5 if percent == 99 else None
        report.figure(what, 100 * (now / before - 1), "%", at_most=most, note=note)


class _Moving:
    """Stores and loads on a thread, at a given speed."""

    def __init__(self, traffic: Traffic, rate: float) -> None:
        self._traffic, self._rate = traffic, rate
        self._stop, self._error = threading.Event(), list[BaseException]()
        self._turns, self._start = 0, time.monotonic()
        self._thread = threading.Thread(target=self._move, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Bytes a second that were moved. Raises what went wrong."""
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error[0]
        return self._turns * 2 * self._traffic.nbytes / (time.monotonic() - self._start)

    def _move(self) -> None:
        try:
            while not self._stop.is_set():
                self._traffic.turn()
                self._turns += 1
                due = self._start + self._turns * 2 * self._traffic.nbytes / self._rate
                time.sleep(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self._error.append(error)


def _percentile(spans: Sequence[Span], percent: float) -> float:
    return float(np.percentile([span.end - span.start for span in spans], percent))
