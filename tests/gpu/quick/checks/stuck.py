"""Step 9. A worker that dies before its event: nobody waits for it on a stream."""

from __future__ import annotations

from tests.gpu.quick.gpu import Gpu
from tests.gpu.quick.lifetimes import REAP, Bystander, kill_victims, wait_forgotten
from tests.gpu.quick.report import Report
from tests.gpu.quick.site import serving
from tests.support.raw import RawClient


def run(report: Report) -> None:
    gpu = Gpu()
    with serving(*REAP, l1_gb=1) as server, RawClient(server.url) as client:
        bystander = Bystander(report, gpu, client)
        level = gpu.free_bytes()
        kill_victims(server, "held", [1])
        bystander.prove("while an event never happens")
        seconds = wait_forgotten(server, bystander, level)
        report.figure("unmapped, and the memory back", seconds, "s", at_most=10)
        published = server.metrics().total("lmcache_mp_l1_write_chunks_total")
        report.check("nothing of it is published", published == 2, f"{published:.0f} chunks")
        server.assert_no_leases()
        bystander.worker.close()
