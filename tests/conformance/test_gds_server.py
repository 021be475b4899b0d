"""A whole server whose GPU moves files itself: NIXL's GDS and libcufile, over a stub driver."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gds import Gds, gds_in
from tests.support.gpu_site import (
    BLOCKS_A_CHUNK,
    NO,
    GpuSite,
    expect_moved,
    gpu_server_in,
    key_of,
    shuffled,
)
from tests.support.gpu_worker import GpuPool, GpuWorker
from tests.support.l2 import adapter_flags, clear_l1, counter, objects, quarantined, wait_written
from tests.support.server import Server, shown, wait_until

CHUNKS = 5


@pytest.fixture(scope="module")
def gds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gds]:
    with gds_in(tmp_path_factory.mktemp("gds")) as made:
        yield made


@pytest.fixture(params=["GDS", "GDS_MT"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["default"])
def policy(request: pytest.FixtureRequest) -> str:
    """Of stores: `skip_l1` lets GPUs write files themselves."""
    return str(request.param)


@pytest.fixture
def environment(gds: Gds) -> dict[str, str]:
    """Of the server. It says itself to its children which GPU they see."""
    command = shlex.join([*gds.prefix, sys.executable, "-m", "sidecar", "serve"])
    given = {k: v for k, v in gds.environment.items() if k != "CUDA_VISIBLE_DEVICES"}
    return given | {"KV_SIDECAR_SERVER_CMD": command}


@pytest.fixture
def gpu_server(
    request: pytest.FixtureRequest,
    backend: str,
    policy: str,
    gds: Gds,
    environment: dict[str, str],
    tmp_path: Path,
) -> Iterator[Server]:
    """With nothing in the files that another test has left."""
    where = {"file_path": str(gds.directory / request.node.name)}
    adapter = {"type": "nixl_store", "backend": backend, "backend_params": where}
    flags = ["--l2-store-policy", policy, *adapter_flags(**adapter, min_free_gb=0)]
    with gpu_server_in(tmp_path, environment, *flags) as server:
        yield server


@pytest.fixture
def directory(gds: Gds, request: pytest.FixtureRequest, gpu_server: Server) -> Path:
    return gds.directory / request.node.name


past_the_l1 = pytest.mark.parametrize("policy", ["skip_l1"], indirect=True)


def mover(site: GpuSite, instance: int = 1) -> GpuWorker:
    """A worker whose GPU moves files."""
    worker = site.worker(instance, GpuPool(size=64, head=4096, seed=instance))

    def ready() -> bool:
        workers = site.server.status()["workers"]
        return any(w["moves_files"] for w in workers if {w["instance_id"]} == shown(instance))

    wait_until(ready, f"the GPU moves files; log:\n{site.server.stderr()}")
    return worker


def in_files(worker: GpuWorker, server: Server) -> tuple[Any, list[int], list[int]]:
    """A request that is in files only: its key, the blocks that hold it, and as many others."""
    ids, count = shuffled(worker.pool), CHUNKS * BLOCKS_A_CHUNK
    key = key_of(1, CHUNKS)
    assert worker.store(key, ids[:count]) == [b"", True]
    wait_written(server)
    clear_l1(server)
    return key, ids[:count], ids[count : 2 * count]


def test_objects_come_from_files_past_the_l1(gpu_site: GpuSite) -> None:
    worker, server = mover(gpu_site), gpu_site.server
    before = worker.pool.data.copy()
    key, source, target = in_files(worker, server)
    assert worker.lookup({**key, "worker_id": None}) == CHUNKS
    assert server.l1()["total_object_count"] == 0
    assert worker.retrieve(key, target) == [b"", True]
    expect_moved(worker.pool, before, source, target)
    assert server.l1()["total_object_count"] == 0
    moved = server.metrics().total("lmcache_mp_l2_transfer_bytes_total", direction="load")
    assert moved == before[:, source].nbytes
    server.assert_no_leases()


def test_one_request_from_the_l1_and_from_files(gpu_site: GpuSite) -> None:
    worker, server = mover(gpu_site), gpu_site.server
    before = worker.pool.data.copy()
    key, source, target = in_files(worker, server)
    half = {**key, "end": 2 * server.chunk_size}
    assert worker.store(half, source[: 2 * BLOCKS_A_CHUNK]) == [b"", True]
    assert worker.lookup({**key, "worker_id": None}) == CHUNKS
    assert worker.retrieve(key, target) == [b"", True]
    expect_moved(worker.pool, before, source, target)
    assert server.l1()["total_object_count"] == 2
    server.assert_no_leases()


def test_a_bad_file_is_never_served(gpu_site: GpuSite, directory: Path) -> None:
    """The retrieve fails, and no byte of the bad object is written; then the L1 tells why."""
    worker, server = mover(gpu_site), gpu_site.server
    key, _, target = in_files(worker, server)
    for path in objects(directory):
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
    before = worker.pool.data.copy()
    assert worker.lookup({**key, "worker_id": None}) == CHUNKS
    assert worker.retrieve(key, target) == NO
    assert np.array_equal(worker.pool.data, before)
    assert worker.lookup({**key, "worker_id": None}) == 0
    wait_until(lambda: len(quarantined(directory)) == CHUNKS, "the bad files are put aside")
    assert counter(server, "l2_prefetch_failure", reason="gpu_read") == CHUNKS
    assert counter(server, "l2_corrupt_objects", reason="checksum") == CHUNKS
    assert "not the bytes that were stored" in server.stderr()
    server.assert_no_leases()


def test_another_worker_reads_what_one_has_stored(gpu_site: GpuSite) -> None:
    first, second = mover(gpu_site, 1), mover(gpu_site, 2)
    key, source, target = in_files(first, gpu_site.server)
    assert second.lookup({**key, "worker_id": None}) == CHUNKS
    assert second.retrieve(key, target) == [b"", True]
    assert np.array_equal(first.pool.data[:, source], second.pool.data[:, target])


@past_the_l1
def test_objects_go_to_files_past_the_l1(gpu_site: GpuSite, directory: Path) -> None:
    """And are there when the store is answered."""
    worker, server = mover(gpu_site), gpu_site.server
    before, ids = worker.pool.data.copy(), shuffled(worker.pool)
    count, key = CHUNKS * BLOCKS_A_CHUNK, key_of(1, CHUNKS)
    source, target = ids[:count], ids[count : 2 * count]
    assert worker.store(key, source) == [b"", True]
    assert np.array_equal(worker.pool.data, before)
    assert len(objects(directory)) == CHUNKS
    assert server.metrics().total("lmcache_mp_l1_write_chunks_total") == 0
    assert worker.lookup({**key, "worker_id": None}) == CHUNKS
    assert worker.retrieve(key, target) == [b"", True]
    expect_moved(worker.pool, before, source, target)
    assert server.l1()["total_object_count"] == 0
    assert not list((directory / ".tmp").iterdir())
    assert counter(server, "l2_store_completed_objects_chunks") == CHUNKS
    server.assert_no_leases()


@past_the_l1
def test_what_gpus_have_written_outlives_the_server(
    gpu_site: GpuSite, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an object like any other: through the L1, too, every byte is checked."""
    worker, server = mover(gpu_site), gpu_site.server
    before, ids = worker.pool.data.copy(), shuffled(worker.pool)
    count, key = CHUNKS * BLOCKS_A_CHUNK, key_of(1, CHUNKS)
    assert worker.store(key, ids[:count]) == [b"", True]
    assert server.terminate() == 0
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    worker.register()
    assert worker.lookup({**key, "worker_id": None}) == CHUNKS
    assert worker.retrieve(key, ids[count : 2 * count]) == [b"", True]
    expect_moved(worker.pool, before, ids[:count], ids[count : 2 * count])


@past_the_l1
def test_what_is_there_is_not_written_again(gpu_site: GpuSite, directory: Path) -> None:
    worker = mover(gpu_site)
    ids, half = shuffled(worker.pool), key_of(1, CHUNKS) | {"end": 2 * gpu_site.server.chunk_size}
    assert worker.store(half, ids[: 2 * BLOCKS_A_CHUNK]) == [b"", True]
    first = {path: path.stat().st_ino for path in objects(directory)}
    count = CHUNKS * BLOCKS_A_CHUNK
    assert worker.store(key_of(1, CHUNKS), ids[:count]) == [b"", True]
    again = {path: path.stat().st_ino for path in objects(directory)}
    assert len(first) == 2 and len(again) == CHUNKS and first.items() <= again.items()
