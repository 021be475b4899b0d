"""Bytes after store, scribble and retrieve, for every layout and both kinds of handles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from lmcache.v1.platform._device_detect import get_device_spec

from tests.conformance.rig import Rig, round_trip
from tests.gpu.device import on_gpu
from tests.gpu.smi import processes
from tests.support.footprint import children
from tests.support.layouts import FUSED, KV_FIRST_NHD, LAYOUTS, MLA, Layout

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layouts(rig: Rig, layout: Layout) -> None:
    round_trip(rig, rig.worker(on_gpu(layout, seed=layout.format_id)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "uint8"])
@pytest.mark.parametrize("layout", [FUSED, MLA, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_element_types(rig: Rig, layout: Layout, dtype: str) -> None:
    round_trip(rig, rig.worker(on_gpu(layout, dtype=dtype)))


@pytest.mark.parametrize("size", [8, 64, 256, 1024], ids=lambda size: f"{size * 128} B")
def test_lengths_of_runs(rig: Rig, size: int) -> None:
    """Staged and direct."""
    round_trip(rig, rig.worker(on_gpu(FUSED, size=size)), chunks=5)


@pytest.fixture
def isolated_ipc() -> Iterator[None]:
    """Driver handles and timeline words in place of torch's handles and events."""
    pytest.importorskip("cuda.bindings", reason="lmcache needs it for isolated_ipc")
    from lmcache.v1.platform.ipc_policy import set_isolated_ipc

    spec = get_device_spec("cuda")

    def choose(isolated: bool) -> None:
        set_isolated_ipc(isolated)
        spec._event_backend_cache = None  # made of the former choice

    choose(True)
    yield
    choose(False)


@pytest.mark.usefixtures("isolated_ipc")
@pytest.mark.parametrize("layout", [FUSED, MLA, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_isolated_ipc(rig: Rig, layout: Layout) -> None:
    backend = type(get_device_spec("cuda").event_ipc_backend).__name__
    assert "Timeline" in backend, "words in memory, not events"
    round_trip(rig, rig.worker(on_gpu(layout)))


def test_two_workers_at_once(rig: Rig) -> None:
    """Their requests are under way together; each gets its own bytes.

    Layers of 12 MiB: torch gives each an allocation of its own, which workers do not share.
    """
    caches = [on_gpu(FUSED, seed=n, blocks=768, size=128) for n in range(2)]
    workers = [rig.worker(cache, rank=n, world=2) for n, cache in enumerate(caches)]
    tokens = [rig.tokens(4, variant) for variant in range(8)]
    before = [worker.cache.image() for worker in workers]
    blocks = [rig.blocks(worker, 4) for worker in workers]
    stores = [
        worker.begin_store(t, b) for t in tokens for worker, b in zip(workers, blocks, strict=True)
    ]
    assert all(store.result(60) for store in stores)
    for worker, image, mine in zip(workers, before, blocks, strict=True):
        worker.cache.wipe(mine)
        for t in tokens:
            assert worker.retrieve(t, mine)
        for layer, original in image.items():
            assert torch.equal(worker.cache.image()[layer], original)


def test_many_tensors_in_one_allocation(rig: Rig) -> None:
    """torch packs small tensors into one cudaMalloc: one mapping, many tensors."""
    cache = on_gpu(FUSED, layers=24, blocks=24)
    addresses = [tensor.untyped_storage().data_ptr() for tensor in cache.tensors.values()]
    assert max(addresses) - min(addresses) < 20 << 20
    round_trip(rig, rig.worker(cache), chunks=2)


def test_handles_are_of_the_kind_that_is_known() -> None:
    """Version and type, then the driver's 64 bytes."""
    cache = on_gpu(FUSED)
    (tensor, *_) = cache.tensors.values()
    handle = tensor.untyped_storage()._share_cuda_()[1]
    assert len(handle) == 66
    assert handle[0] in (2, 3)
    assert handle[1:2] == b"c"


def test_contexts(rig: Rig) -> None:
    """The server has none; its child has one on the worker's GPU while there is a worker."""
    rig.worker(on_gpu(FUSED))
    assert rig.server.process is not None
    server, (child,) = rig.server.process.pid, children(rig.server.process.pid)
    found = processes()
    if os.getpid() not in found:
        pytest.skip("nvidia-smi does not show this container's processes")
    assert server not in found
    assert found[child] == {
        "GPU-" + str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")
    }
