"""Step 8. Whoever is killed, the others are served, and the GPU's memory comes back."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.quick.gpu import SMALL, Gpu
from tests.gpu.quick.lifetimes import REAP, Bystander, child_of, kill_victims, wait_forgotten
from tests.gpu.quick.report import Report
from tests.gpu.quick.site import serving
from tests.support.raw import RawClient

_ROUNDS, _AT_ONCE = (1, 1) if SMALL else (5, 5)


def run(report: Report) -> None:
    gpu = Gpu()
    with serving(*REAP, l1_gb=1) as server, RawClient(server.url) as client:
        bystander = Bystander(report, gpu, client)
        level, seconds = gpu.free_bytes(), []
        for turn in range(_ROUNDS):
            kill_victims(server, "stores", range(turn * _AT_ONCE, (turn + 1) * _AT_ONCE))
            seconds.append(wait_forgotten(server, bystander, level))
        what = f"{_ROUNDS * _AT_ONCE} workers killed in stores: forgotten, memory back"
        report.figure(what, max(seconds), "s", at_most=8)
        bystander.store()
        bystander.prove("after that")
        start = time.monotonic()
        os.kill(child_of(server), signal.SIGKILL)
        bystander.register_again()
        bystander.prove("by a new child")
        report.figure("the child killed: served again", time.monotonic() - start, "s", at_most=30)
        server.assert_no_leases()
        bystander.worker.close()
    _illegal_address(report, gpu)


def _illegal_address(report: Report, gpu: Gpu) -> None:
    os.environ["KV_SIDECAR_SERVER_CMD"] = f"{sys.executable} -m tests.gpu.faulty serve"
    with tempfile.TemporaryDirectory() as folder:
        fault = Path(folder, "fault")
        os.environ["GPU_FAULT"] = str(fault)
        with serving() as server, RawClient(server.url) as client:
            bystander = Bystander(report, gpu, client)
            fault.touch()
            stored = bystander.store(cache_salt="other")
            report.check("a store with an illegal address fails", not stored)
            report.check("with that error", "(700)" in server.stderr())
            found = bystander.worker.lookup(bystander.key)  # none while nobody is registered
            report.check("lookups are answered", found in (0, 2), f"{found} chunks")
            bystander.register_again()
            bystander.prove("by another child")
            bystander.worker.close()
