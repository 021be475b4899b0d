"""GPU workers over the fake driver: two real processes, real handlers, every byte compared."""

from __future__ import annotations

import pytest

from tests.support.gpu_site import GpuSite, gpu_site, key_of, new_gpu_site  # noqa: F401
from tests.support.gpu_worker import GpuPool
from tests.support.server import wait_until


@pytest.mark.parametrize("as_torch", [False, True], ids=["cuda_raw", "cuda"])
def test_round_trip(gpu_site: GpuSite, as_torch: bool) -> None:  # noqa: F811
    worker = gpu_site.worker(1, GpuPool(seed=1, as_torch=as_torch))
    worker.prove(list(range(256)), 64)
    assert gpu_site.has_mapped(worker.pool)
    worker.close()
    wait_until(lambda: not gpu_site.children(), "the child ended after its last worker")
