"""The real driver interface and child over a stub of libcuda that is compiled with cuda.h."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_gpu import UUID
from tests.support.gpu_site import GpuSite, gpu_server_in, prove, round_trip, stored
from tests.support.gpu_worker import GpuPool, GpuWorker, Timeline
from tests.support.kept import KEEP, finish
from tests.support.raw import extension
from tests.support.server import REPO, Server, shown, wait_until
from tests.support.stub_libraries import stub_driver


@pytest.fixture(scope="module", params=["true", "false"], ids=["batches", "one by one"])
def gpu_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("stub")
    flags = ("--gpu-batched-copies", request.param)
    with gpu_server_in(folder, stub_driver(folder), *flags) as server:
        yield server


@pytest.mark.parametrize("size", [3, 8, 256], ids=["384 B", "1 KiB", "32 KiB"])
def test_every_call_has_the_types_of_the_header(gpu_site: GpuSite, size: int) -> None:
    """Batches, the kernel on odd sizes and the staging buffer, events, mapping and unmapping."""
    worker = gpu_site.worker(1, GpuPool(size=size, head=512 + size, as_torch=True, seed=size))
    round_trip(worker, chunks=7)
    assert "driver for CUDA 12.8, " in gpu_site.server.stderr()
    wait_until(lambda: "KiB are staged for stores" in gpu_site.server.stderr(), "it is calibrated")


def test_timeline_events(gpu_site: GpuSite) -> None:
    worker, timeline = gpu_site.worker(1), Timeline(4096)
    timeline.write(3)
    worker.done.handle = timeline.event(3)
    round_trip(worker, chunks=2)
    timeline.unlink()


def test_an_allocation_ends_where_the_worker_s_does(gpu_site: GpuSite) -> None:
    """The driver may cut it from a larger block, of which it tells base and size."""
    good, bad = gpu_site.worker(1), GpuPool(head=512)
    descriptors = [bad.descriptor(layer) for layer in range(2)]
    descriptors[1]["alloc_offset"] += 256
    worker = GpuWorker(gpu_site.client, "gpu", 2, bad)
    caches = [extension(descriptor) for descriptor in descriptors]
    gpu_site.client.call("register_kv_cache", *worker.registration(caches))
    assert gpu_site.server.instances() == shown(1)
    round_trip(good, chunks=2)
    worker.close()


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_an_l1_that_was_kept_is_pinned_again(
    new_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    for name, value in stub_driver(tmp_path).items():
        monkeypatch.setenv(name, value)
    server = new_server(*KEEP).start()
    before = GpuSite(server)
    worker = before.worker(1)
    key = stored(worker, 1)
    wait_until(lambda: not server.status()["kept"]["undigested_objects"], "it has digests")
    before.client.close()
    finish(server, end)
    server.start()
    wait_until(lambda: not server.status()["kept"]["unproven_objects"], "all is proven")
    site = GpuSite(server)
    worker = site.worker(1, worker.pool)
    assert worker.lookup({**key, "worker_id": None}) == 2
    prove(worker, key)
    round_trip(worker, chunks=3)
    wait_until(
        lambda: server.metrics().total("lmcache_mp_l1_memory_pinned_bytes") == 1 << 28,
        "all of the arena is pinned",
    )
    site.close()


def test_the_kernel_s_sums(tmp_path: Path) -> None:
    """Its source, run thread by thread, over objects of many sizes at once."""
    environment = {**os.environ, **stub_driver(tmp_path), "CUDA_VISIBLE_DEVICES": UUID}
    command = [sys.executable, "-m", "tests.support.sums"]
    result = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
