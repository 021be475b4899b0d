"""Objects between files and a real GPU's memory, by NIXL and cuFile, past the L1."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conformance.rig import Rig, expect_moved
from tests.gpu.device import on_gpu
from tests.support.l2 import adapter_flags, clear_l1, wait_written
from tests.support.layouts import FUSED, KV_FIRST_NHD, Layout
from tests.support.server import Server

pytestmark = pytest.mark.gpu

READY_SECONDS = 30


def libraries() -> str:
    """The folders of cuFile and of the runtime library that PyTorch has brought."""
    packages = Path(torch.__file__).parents[1] / "nvidia"
    names = ("libcufile.so.0", "libcudart.so.1*")
    return os.pathsep.join({str(path.parent) for name in names for path in packages.rglob(name)})


@pytest.fixture(params=["GDS", "GDS_MT"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["default", "skip_l1"])
def policy(request: pytest.FixtureRequest) -> str:
    """Of stores: with `skip_l1` the GPU writes the files itself, too."""
    return str(request.param)


@pytest.fixture
def rig(
    backend: str,
    policy: str,
    new_server: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Rig]:
    monkeypatch.setenv("LD_LIBRARY_PATH", libraries(), prepend=os.pathsep)
    files = {"file_path": str(tmp_path / "l2")}
    adapter = {"type": "nixl_store", "backend": backend, "backend_params": files}
    flags = ["--l2-store-policy", policy, *adapter_flags(**adapter, min_free_gb=0)]
    rig = Rig(new_server(*flags).start(), "files")
    yield rig
    rig.close()


def wait_ready(server: Server) -> None:
    """Skips where NIXL or cuFile cannot be used: the log says why."""
    end = time.monotonic() + READY_SECONDS
    while not all(worker["moves_files"] for worker in server.status()["workers"]):
        why = [line for line in server.stderr().splitlines() if "go through the L1" in line]
        if why or time.monotonic() > end:
            pytest.skip(f"this GPU does not move files: {why or server.stderr()[-1000:]}")
        time.sleep(0.1)


@pytest.mark.parametrize("layout", [FUSED, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_files_come_and_go_past_the_l1(rig: Rig, policy: str, layout: Layout) -> None:
    worker, server = rig.worker(on_gpu(layout)), rig.server
    wait_ready(server)
    tokens, source = rig.tokens(3), rig.blocks(worker, 3)
    target = rig.blocks(worker, 3, first=1 + len(source[0]))
    origin = worker.cache.image()
    assert worker.store(tokens, source)
    wait_written(server)
    past_the_l1 = server.metrics().total("lmcache_mp_l1_write_chunks_total") == 0
    assert past_the_l1 == (policy == "skip_l1")
    clear_l1(server)
    worker.cache.wipe(target)
    before = worker.cache.image()
    assert rig.scheduler().lookup(tokens) == 3
    assert server.l1()["total_object_count"] == 0
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, source, target)
    assert server.l1()["total_object_count"] == 0
    server.assert_no_leases()
