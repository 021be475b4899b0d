"""Drivers that do not start, or only in part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gpu_site import GpuSite, gpu_server_in, round_trip
from tests.support.l2 import adapter_flags
from tests.support.server import Server, shown, wait_until
from tests.support.stub_libraries import stub_driver

INVALID_VALUE, OUT_OF_MEMORY = 1, 2
NOT_FOUND, NOT_PERMITTED, NOT_READY, DRIVER_MISMATCH = 500, 800, 802, 803


@pytest.fixture(scope="module")
def gpu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("stub")
    where = {"file_path": str(folder / "l2")}
    flags = adapter_flags(type="nixl_store", backend="GDS", backend_params=where, min_free_gb=0)
    with gpu_server_in(folder, stub_driver(folder), *flags) as server:
        yield server


@pytest.fixture
def faults(gpu_server: Server) -> Iterator[Path]:
    """What the driver is to fail with."""
    path = gpu_server.log.parent / "faults"
    yield path
    path.unlink(missing_ok=True)


def test_a_driver_that_is_not_ready_yet(gpu_site: GpuSite, faults: Path) -> None:
    """Its workers are served as soon as it is."""
    faults.write_text(f"cuInit {NOT_READY}")
    worker = gpu_site.worker(1)
    assert gpu_site.server.instances() == set()
    reason = f"the NVIDIA driver does not start: cuInit: CUDA error ({NOT_READY})"
    assert reason in gpu_site.server.stderr()
    faults.unlink()

    def served() -> bool:
        gpu_site.reregister(worker)
        return gpu_site.server.instances() == shown(1)

    wait_until(served, "the worker is served")
    round_trip(worker, chunks=2)


def test_a_driver_that_needs_somebody_to_mend_it(gpu_site: GpuSite, faults: Path) -> None:
    """Its workers recompute, and are not made to register again and again."""
    faults.write_text(f"cuInit {DRIVER_MISMATCH}")
    gpu_site.worker(2)
    assert gpu_site.server.instances() == set()
    assert all(gpu_site.client.call("ping", 2) for _ in range(3))
    assert "it ended when it opened them" not in gpu_site.server.stderr(), "it is not to blame"


@pytest.mark.parametrize(
    ("code", "what_to_do"),
    [
        (INVALID_VALUE, "report it, with the version of the driver"),
        (OUT_OF_MEMORY, "no memory left for them"),
        (209, "has no code for this GPU"),
        (218, "is not of the driver's version"),
        (221, "install libnvidia-ptxjitcompiler.so.1"),
        (222, "update the driver"),
        (223, "unset CUDA_DISABLE_PTX_JIT"),
        (303, "report it, with the version of the driver"),
    ],
)
def test_a_driver_that_does_not_compile_the_kernel(
    gpu_site: GpuSite, faults: Path, code: int, what_to_do: str
) -> None:
    """One warning, and what would have been gathered by the kernel is copied all the same."""
    faults.write_text(f"cuModuleLoadData {code}")
    warned = gpu_site.server.stderr().count(what_to_do)
    round_trip(gpu_site.worker(1), chunks=7)
    assert gpu_site.server.stderr().count(what_to_do) == warned + 1


@pytest.mark.parametrize(
    "answer", [f"cuMemGetAddressRange {NOT_FOUND}", "base 4096", "base -1000000"]
)
def test_a_driver_that_knows_no_range_of_a_worker_s_memory(
    gpu_site: GpuSite, faults: Path, answer: str
) -> None:
    """cuda.h promises one for memory of the process itself only."""
    said = "does not tell how large workers' allocations are"
    faults.write_text(answer)
    warned, one, two = gpu_site.server.stderr().count(said), gpu_site.worker(1), gpu_site.worker(2)
    round_trip(one, chunks=7)
    round_trip(two, chunks=2, seed=2)
    assert gpu_site.server.stderr().count(said) == warned + 1


def test_memory_that_may_not_be_pinned(gpu_site: GpuSite, faults: Path) -> None:
    """It is copied as it is."""
    faults.write_text(f"cuMemHostRegister {NOT_PERMITTED}")
    worker, child = gpu_site.worker(1), gpu_site.child()
    wait_until(lambda: f"({NOT_PERMITTED})" in gpu_site.server.stderr(), "pinning is given up")
    round_trip(worker, chunks=7)
    assert gpu_site.child() == child


def test_another_device_than_the_one_that_was_asked_for(gpu_site: GpuSite, faults: Path) -> None:
    """With MIG the driver shows an instance of the GPU."""
    faults.write_text("uuid 1")
    gpu_site.worker(1)
    assert gpu_site.server.instances() == set()
    assert "an instance of it, if MIG is on" in gpu_site.server.stderr()
    assert all(gpu_site.client.call("ping", 1) for _ in range(3)), "it stays so"
