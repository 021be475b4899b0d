"""The real driver interface and child over a stub of libcuda that is compiled with cuda.h."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gpu_site import GpuSite, gpu_server_in, round_trip
from tests.support.gpu_worker import GpuPool, GpuWorker, Timeline
from tests.support.raw import extension
from tests.support.server import REPO, Server, wait_until

STUB = REPO / "tests" / "support" / "libcuda_stub.cpp"


def headers() -> Path | None:
    """The folder of cuda.h: Triton brings it, as a toolkit does."""
    triton = importlib.util.find_spec("triton")
    places = [Path("/usr/local/cuda/include")]
    if triton is not None and triton.origin is not None:
        places.insert(0, Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((place for place in places if (place / "cudaTypedefs.h").exists()), None)


@pytest.fixture(scope="module", params=["true", "false"], ids=["batches", "one by one"])
def gpu_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    include = headers()
    if include is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda.h (of Triton or a CUDA toolkit)")
    folder = tmp_path_factory.mktemp("stub")
    kernel = REPO / "sidecar" / "engines" / "cuda"
    output = ["-o", str(folder / "libcuda.so.1")]
    flags = [
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Werror",
        f"-I{include}",
        f"-I{kernel}",
    ]
    subprocess.run(["g++", *flags, *output, str(STUB)], check=True)
    flags = ("--gpu-batched-copies", request.param)
    with gpu_server_in(folder, {"LD_LIBRARY_PATH": str(folder)}, *flags) as server:
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
    assert gpu_site.server.instances() == {1}
    round_trip(good, chunks=2)
    worker.close()
