"""GPUs on two NUMA nodes: what a worker stores lies in the part of the L1 near its GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_gpu import BUS, OTHER_UUID, UUID
from tests.support.gpu_site import (
    BLOCKS_A_CHUNK,
    SOURCE,
    GpuSite,
    fake_gpu,
    gpu_server_in,
    key_of,
    prove,
    shuffled,
    stored,
)
from tests.support.gpu_worker import GpuPool, GpuWorker
from tests.support.pci import device
from tests.support.server import SHM, Server, wait_until

PART = 64 << 20  # the L1 has two


@pytest.fixture(scope="module")
def gpu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that sees two GPUs on two nodes, and whose L1 is resident."""
    folder = tmp_path_factory.mktemp("numa")
    sysfs = folder / "devices"
    sysfs.mkdir()
    device(sysfs, BUS[UUID], 0)
    device(sysfs, BUS[OTHER_UUID], 1)
    environment = {**fake_gpu(folder), "FAKE_GPU_PCI": str(sysfs)}
    with gpu_server_in(folder, environment, "--l1-size-gb", "0.125") as server:
        wait_until(lambda: server.l1()["memory_populated_bytes"] == 2 * PART, "all resident")
        yield server


def parts(site: GpuSite, worker: GpuWorker, blocks: list[int]) -> set[int]:
    """In which parts of the L1 the bytes of these blocks are."""
    arena = (SHM / f"lmcache_l1_pool_{site.server.shm_name}").read_bytes()
    found = set()
    for block in blocks:
        at = arena.find(worker.pool.data[0, block].tobytes())
        assert at >= 0, "it is cached"
        found.add(at // PART)
    return found


def test_what_a_worker_stores_lies_near_its_gpu(gpu_site: GpuSite) -> None:
    zero = gpu_site.worker(1, GpuPool(seed=1))
    one = gpu_site.worker(2, GpuPool(seed=2, uuid=OTHER_UUID))
    keys = [stored(worker, seed) for seed, worker in enumerate((zero, one, one, zero))]
    assert parts(gpu_site, zero, SOURCE) == {0}
    assert parts(gpu_site, one, SOURCE) == {1}
    for worker, key in zip((zero, one, one, zero), keys, strict=True):
        prove(worker, key)


def test_a_gpu_whose_process_was_replaced_is_where_it_was(gpu_site: GpuSite) -> None:
    worker = gpu_site.worker(1, GpuPool(seed=3, uuid=OTHER_UUID))
    kept = stored(worker, 1)
    gpu_site.kill_child()
    gpu_site.reregister(worker)
    prove(worker, kept)
    worker.pool.data[:, SOURCE] ^= 0xFFFF
    stored(worker, 2)
    assert parts(gpu_site, worker, SOURCE) == {1}


def test_where_the_near_part_is_full_the_other_one_is_used(gpu_site: GpuSite) -> None:
    """Objects of a megabyte: 64 are a part. Nothing is evicted for that."""
    pool = GpuPool(blocks=300, layers=1, size=2048, uuid=OTHER_UUID)
    worker, ids = gpu_site.worker(1, pool), shuffled(pool)
    chunks = 70
    key = key_of(1, chunks)
    assert worker.store(key, ids[: chunks * BLOCKS_A_CHUNK])[1]
    assert gpu_site.found(key) == chunks
    first = ids[: chunks * BLOCKS_A_CHUNK : BLOCKS_A_CHUNK]  # of each chunk
    assert parts(gpu_site, worker, first[:64:9]) == {1}
    assert parts(gpu_site, worker, first[64:]) == {0}


def test_the_log_says_what_became_of_the_parts(gpu_site: GpuSite) -> None:
    """Where there is no node 1, or mbind is forbidden, the server works all the same."""
    log = gpu_site.server.stderr()
    for stretch in ("from 0.00 to 0.06 GiB", "from 0.06 to 0.12 GiB"):
        placed = f"the L1 {stretch} lies on the GPUs' NUMA nodes"
        refused = f"the L1 {stretch} is not placed on the GPUs' NUMA nodes"
        assert placed in log or refused in log
