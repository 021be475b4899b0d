"""GPUs that fail, hang and disappear: what is cached stays, and no byte is wrong."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_gpu import ILLEGAL, OTHER_UUID
from tests.support.gpu_site import (
    NO,
    SOURCE,
    TARGET,
    GpuSite,
    fake_gpu,
    gpu_server_in,
    key_of,
    prove,
    stored,
)
from tests.support.gpu_worker import Event, GpuPool, GpuWorker
from tests.support.raw import RawClient
from tests.support.server import wait_until

GPU_SECONDS = 2.0
OUT_OF_MEMORY = 2


def mixed(count: int) -> list[int]:
    """Blocks of which no two are neighbours in memory as in the request."""
    return [int(b) for b in np.random.default_rng(1).permutation(count) + 1]


@pytest.mark.parametrize("call", ["copy", "copy_runs", "record", "is_done"])
def test_after_a_fatal_error_the_process_is_replaced(gpu_site: GpuSite, call: str) -> None:
    """Its requests are refused, its workers register again; other GPUs notice nothing."""
    worker, second = gpu_site.worker(1), gpu_site.worker(2)
    kept = stored(second, 1)
    old = gpu_site.child()
    gpu_site.fail({"call": call, "nth": 1, "code": ILLEGAL})
    bad = key_of(2, 2)
    assert worker.store(bad, [*range(3, 19, 2)]) == NO
    gpu_site.fail()
    other = gpu_site.worker(3, GpuPool(uuid=OTHER_UUID))
    for lost in (worker, second):
        gpu_site.reregister(lost)
    assert old not in gpu_site.children()
    assert gpu_site.found(bad) == 0
    second.pool.data[:, TARGET] = 0
    prove(second, kept)
    prove(worker, stored(worker, 3))
    prove(other, stored(other, 4))


def test_a_harmless_error_fails_its_request_only(gpu_site: GpuSite) -> None:
    worker = gpu_site.worker(1)
    kept, child = stored(worker, 1), gpu_site.child()
    gpu_site.fail({"call": "copy", "nth": 1, "code": OUT_OF_MEMORY})
    assert worker.store(key_of(2, 2), SOURCE) == NO
    gpu_site.fail({"call": "open_event", "nth": 1, "code": OUT_OF_MEMORY})
    assert worker.retrieve(kept, TARGET) == NO
    gpu_site.fail()
    assert gpu_site.found(key_of(2, 2)) == 0
    prove(worker, kept)
    assert gpu_site.child() == child


def test_a_request_that_fails_in_the_middle_publishes_nothing(gpu_site: GpuSite) -> None:
    """Several portions of 32 MiB: the third cannot be begun while two are on their way."""
    pool = GpuPool(blocks=640, size=1024, layers=1)
    worker, key, ids = gpu_site.worker(1, pool), key_of(1, 150), mixed(600)
    before = pool.data.copy()
    gpu_site.fail({"call": "copy", "nth": 3, "code": OUT_OF_MEMORY})
    assert worker.store(key, ids) == NO
    gpu_site.fail()
    assert gpu_site.found(key) == 0
    assert worker.store(key, ids)[1]
    pool.data[:] = 0
    assert worker.retrieve(key, ids)[1]
    assert np.array_equal(pool.data[:, ids], before[:, ids])


@pytest.mark.parametrize("hang", ["record", "stream"])
def test_a_gpu_that_hangs_is_replaced(gpu_site: GpuSite, hang: str) -> None:
    """In a call that does not return, and in a copy that does not end."""
    worker = gpu_site.worker(1)
    kept, old = stored(worker, 1), gpu_site.child()
    gpu_site.fail({"call": hang, "delay": 30})
    assert worker.store(key_of(2, 2), SOURCE) == NO
    gpu_site.fail()
    assert gpu_site.server.request("/healthcheck")[0] == 200
    gpu_site.reregister(worker)
    assert gpu_site.child() != old
    assert gpu_site.found(key_of(2, 2)) == 0
    prove(worker, kept)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stops(gpu_site: GpuSite, number: int) -> None:
    worker, event = gpu_site.worker(1), Event()
    kept = stored(worker, 1)
    frames = gpu_site.client.frames("store", *worker.request(key_of(2, 2), SOURCE, event.handle))
    gpu_site.client.send(frames)
    gpu_site.kill_child(number)
    assert gpu_site.answer(frames) == NO
    gpu_site.reregister(worker)
    prove(worker, kept)
    gpu_site.server.assert_no_leases()


def test_an_event_that_never_happens(gpu_site: GpuSite) -> None:
    """The worker died before its kernels had run: nobody else waits, no process is replaced."""
    worker, event = gpu_site.worker(1), Event()
    child = gpu_site.child()
    frames = gpu_site.client.frames("store", *worker.request(key_of(1, 2), SOURCE, event.handle))
    gpu_site.client.send(frames)
    with RawClient(gpu_site.server.url) as other:
        neighbour = GpuWorker(other, "gpu", 2)
        neighbour.register()
        prove(neighbour, stored(neighbour, 2))
        neighbour.close()
    assert gpu_site.answer(frames) == NO
    assert gpu_site.child() == child
    assert gpu_site.found(key_of(1, 2)) == 0


def test_without_memory_for_itself_transfers_are_slow_and_right(gpu_site: GpuSite) -> None:
    """None to be pinned, and none on the GPU for a staging buffer."""
    gpu_site.fail(
        {"call": "pin", "code": OUT_OF_MEMORY}, {"call": "allocate", "code": OUT_OF_MEMORY}
    )
    worker = gpu_site.worker(1)
    prove(worker, stored(worker, 1))
    gpu_site.client.call("unregister_kv_cache", 1)
    assert gpu_site.server.stderr().count("ulimit -l unlimited") == 1
    assert "no staging buffer" in gpu_site.server.stderr()


def test_torch_hears_that_a_process_was_killed(gpu_site: GpuSite) -> None:
    """Of each share once, although its worker had left already when the other's process died."""
    left, staying = (gpu_site.worker(n, GpuPool(as_torch=True)) for n in (1, 2))
    gpu_site.client.call("unregister_kv_cache", 1)
    wait_until(lambda: left.pool.counts() == [0, 0, 1, 1], "torch has heard of the first")
    left.pool.counter.write_bytes(np.ones(4, np.int64).tobytes())  # whoever touches it is seen
    gpu_site.kill_child()
    wait_until(lambda: staying.pool.counts() == [0, 0, 1, 1], "torch has heard of the second")
    assert left.pool.counts() == [1, 1, 1, 1]


def test_torch_hears_that_the_server_ends(tmp_path: Path) -> None:
    with gpu_server_in(tmp_path, fake_gpu(tmp_path)) as server:
        site = GpuSite(server)
        worker = site.worker(1, GpuPool(as_torch=True))
        server.terminate()
        assert worker.pool.counts() == [0, 0, 1, 1]
        worker.pool.unlink()
        worker.done.unlink()
        site.client.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_leaves_no_process(tmp_path: Path, number: int) -> None:
    """In the middle of a transfer, too."""
    with gpu_server_in(tmp_path, fake_gpu(tmp_path)) as server:
        site = GpuSite(server)
        worker, event = site.worker(1), Event()
        site.client.send(
            site.client.frames("store", *worker.request(key_of(1, 2), SOURCE, event.handle))
        )
        wait_until(lambda: server.leases() > 0, "the store is under way")
        child = Path(f"/proc/{site.child()}")
        assert server.process is not None
        server.process.send_signal(number)
        server.process.wait(30)
        wait_until(lambda: not child.exists(), "the GPU's process gone")
        for left in (worker.pool, worker.done, event):
            left.unlink()
        site.client.close()


def test_a_load_overtakes_a_long_store(gpu_site: GpuSite) -> None:
    """Stores and loads have a stream each."""
    pool = GpuPool(blocks=640, size=1024, layers=1)
    long = gpu_site.worker(1, pool)
    with RawClient(gpu_site.server.url) as other:
        quick = GpuWorker(other, "gpu", 2)
        quick.register()
        key = stored(quick, 1)
        # A busy machine may run the store to its end before it gets to the load.
        overtook = any(_overtakes(gpu_site, long, quick, key, seed) for seed in range(2, 7))
        assert overtook, "each store had ended before the load"
        quick.close()


def _overtakes(site: GpuSite, long: GpuWorker, quick: GpuWorker, key: Any, seed: int) -> bool:
    site.fail({"call": "stream", "delay": 0.1})
    frames = site.client.frames("store", *long.request(key_of(seed, 150), mixed(600)))
    site.client.send(frames)
    prove(quick, key)
    is_storing = site.server.leases() > 0
    site.fail()
    assert site.answer(frames) == [b"", True]
    return is_storing
