"""GPU workers over the fake driver: two real processes, real handlers, every byte compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_gpu import OTHER_UUID
from tests.support.footprint import Footprint
from tests.support.gpu_site import (
    BLOCKS_A_CHUNK,
    TARGET,
    GpuSite,
    expect_moved,
    key_of,
    round_trip,
    shuffled,
    stored,
)
from tests.support.gpu_worker import Event, GpuPool, GpuWorker, Timeline
from tests.support.raw import RawClient, RawPool, RawWorker, extension
from tests.support.server import Server, shown, wait_until


@pytest.mark.parametrize("as_torch", [False, True], ids=["cuda_raw", "cuda"])
@pytest.mark.parametrize("size", [3, 8, 256], ids=["384 B", "1 KiB", "32 KiB"])
def test_runs_short_and_long(gpu_site: GpuSite, as_torch: bool, size: int) -> None:
    """Staged and direct, at odd sizes too, with neighbours to be merged and without."""
    worker = gpu_site.worker(1, GpuPool(size=size, as_torch=as_torch, seed=size))
    round_trip(worker, chunks=7)
    worker.prove(list(range(256)), 64)


def test_an_object_over_two_pinned_pieces(gpu_site: GpuSite) -> None:
    """Copies are cut where pinned pieces of 64 MiB meet: the driver refuses others."""
    pool = GpuPool(blocks=1000, layers=3, size=200, seed=3)
    worker = gpu_site.worker(1, pool)
    before = pool.data.copy()
    ids = list(range(1, 1 + 230 * BLOCKS_A_CHUNK))  # 70 MB, merged runs of 100 KB
    keys = [key_of(seed, 46) for seed in range(5)]
    for part, key in enumerate(keys):
        assert worker.store(key, ids[part * 184 : part * 184 + 184])[1]
    pool.data[:] = 0
    for part, key in enumerate(keys):
        assert worker.retrieve(key, ids[part * 184 : part * 184 + 184])[1]
    assert np.array_equal(pool.data[:, ids], before[:, ids])


def test_skipped_tokens_and_null_blocks_are_not_written(gpu_site: GpuSite) -> None:
    worker = gpu_site.worker(1)
    pool, key, ids = worker.pool, key_of(1, 4), shuffled(worker.pool)
    source, target = ids[:16], ids[16:32]
    source[4:8] = [0] * 4  # a chunk that the worker does not have
    before = pool.data.copy()
    assert worker.store(key, source)[1]
    assert gpu_site.found(key) == 1
    assert worker.retrieve(key, target)[1] is False
    first = {**key, "end": 64}
    assert worker.retrieve(first, target[:4], skip=40)[1]
    expect_moved(pool, before, source[2:4], target[2:4])


def test_workers_on_cpu_and_gpu_share_what_has_one_layout(gpu_site: GpuSite) -> None:
    gpu = gpu_site.worker(1, GpuPool(seed=5))
    host = RawWorker(gpu_site.client, "gpu", 2, RawPool())
    host.register()
    key, ids = key_of(5, 3), shuffled(gpu.pool)[:12]
    assert gpu.store(key, ids)[1]
    assert host.retrieve(key, ids)[1]
    assert np.array_equal(host.pool.data[:, ids], gpu.pool.data[:, ids])
    host.close()


def test_one_process_for_each_gpu_and_none_without_workers(gpu_site: GpuSite) -> None:
    assert gpu_site.children() == []
    one, two = gpu_site.worker(1, GpuPool(seed=1)), gpu_site.worker(2, GpuPool(seed=2))
    assert len(gpu_site.children()) == 1
    other = gpu_site.worker(3, GpuPool(seed=3, uuid=OTHER_UUID))
    assert len(gpu_site.children()) == 2
    for seed, worker in enumerate((one, two, other)):
        round_trip(worker, chunks=2, seed=seed)
    one.close()
    wait_until(lambda: not gpu_site.has_mapped(one.pool), "the memory of one worker unmapped")
    assert gpu_site.has_mapped(two.pool)
    two.close()
    wait_until(lambda: len(gpu_site.children()) == 1, "the first GPU's process ended")
    round_trip(other, chunks=2, seed=9)
    other.close()
    wait_until(lambda: not gpu_site.children(), "no process left")


def test_registering_again_maps_nothing_twice(gpu_site: GpuSite) -> None:
    """The fake driver refuses to open a handle that is open."""
    worker = gpu_site.worker(1, GpuPool(as_torch=True))
    child = gpu_site.child()
    worker.register()
    assert gpu_site.child() == child
    round_trip(worker, chunks=2)


def test_torch_hears_that_its_memory_is_free(gpu_site: GpuSite) -> None:
    staying = gpu_site.worker(2)
    worker = gpu_site.worker(1, GpuPool(as_torch=True))
    assert worker.pool.counts() == [1, 1, 1, 1]
    gpu_site.client.call("unregister_kv_cache", worker.instance)
    wait_until(
        lambda: worker.pool.counts() == [0, 0, 1, 1], "one count less for each of the two tensors"
    )
    round_trip(staying, chunks=1)


@pytest.mark.parametrize("kind", ["ipc event", "timeline"])
def test_a_store_reads_nothing_before_the_event(gpu_site: GpuSite, kind: str) -> None:
    """The worker's kernels are still writing when the request arrives."""
    worker = gpu_site.worker(1)
    event, timeline = Event(), Timeline(4096)
    timeline.write(6)
    handle = event.handle if kind == "ipc event" else timeline.event(7)
    key, ids = key_of(1, 2), shuffled(worker.pool)[:8]
    frames = gpu_site.client.frames("store", *worker.request(key, ids, handle))
    gpu_site.client.send(frames)
    with RawClient(gpu_site.server.url) as other:  # what came later is done before
        neighbour = GpuWorker(other, "gpu", 2)
        neighbour.register()
        round_trip(neighbour, chunks=2, seed=2)
        neighbour.close()
    worker.pool.data[:, ids] = 4711
    event.signal()
    timeline.write(8)
    assert gpu_site.answer(frames) == [b"", True]
    worker.pool.data[:, ids] = 0
    assert worker.retrieve(key, ids)[1]
    assert (worker.pool.data[:, ids] == 4711).all()
    event.unlink()
    timeline.unlink()


def test_timeline_words_stay_mapped_until_their_worker_leaves(gpu_site: GpuSite) -> None:
    """Mapping them anew with each request would cost more than the request."""
    staying, worker, timeline = gpu_site.worker(1), gpu_site.worker(2), Timeline(4096)
    timeline.write(9)
    worker.done.handle = timeline.event(9)
    round_trip(worker, chunks=1)
    maps = Path(f"/proc/{gpu_site.child()}/maps")
    assert timeline.name in maps.read_text()
    round_trip(worker, chunks=1, seed=8)
    gpu_site.client.call("unregister_kv_cache", 2)
    wait_until(lambda: timeline.name not in maps.read_text(), "the words unmapped")
    round_trip(staying, chunks=1, seed=9)
    timeline.unlink()


def test_a_store_that_waits_for_another_publishes_nothing_of_a_dead_worker(
    gpu_site: GpuSite,
) -> None:
    """It may have used its blocks for something else since its connection was gone."""
    other, theirs, own = gpu_site.worker(1), Event(), Event()
    source = shuffled(other.pool)
    begun = gpu_site.client.frames("store", *other.request(key_of(1, 2), source[:8], theirs.handle))
    gpu_site.client.send(begun)
    wait_until(lambda: gpu_site.server.leases() == 2, "the store of the first chunks")
    with RawClient(gpu_site.server.url) as client:
        dying = GpuWorker(client, "gpu", 2)
        dying.register()
        client.send(client.frames("store", *dying.request(key_of(1, 4), source[:16], own.handle)))
        wait_until(lambda: gpu_site.server.leases() == 4, "the store of the others")
    wait_until(lambda: _unreachable(gpu_site) == shown(2), "the server knows that it is gone")
    own.signal()
    wait_until(lambda: gpu_site.server.leases() == 2, "its copy has ended")
    theirs.signal()
    assert gpu_site.answer(begun) == [b"", True]
    assert gpu_site.found(key_of(1, 4)) == 2
    for left in (dying.pool, dying.done, theirs, own):
        left.unlink()


def _unreachable(site: GpuSite) -> set[int]:
    """The registered workers whose connection is gone."""
    workers = site.server.status()["workers"]
    return {worker["instance_id"] for worker in workers if not worker["connected"]}


def test_a_retrieve_writes_nothing_before_the_event(gpu_site: GpuSite) -> None:
    worker, event = gpu_site.worker(1), Event()
    key, ids = key_of(1, 1), shuffled(worker.pool)[:4]
    assert worker.store(key, ids)[1]
    expected = worker.pool.data[:, ids].copy()
    frames = gpu_site.client.frames("retrieve", *worker.request(key, ids, event.handle), 0)
    gpu_site.client.send(frames)
    with RawClient(gpu_site.server.url) as other:
        neighbour = GpuWorker(other, "gpu", 2)
        neighbour.register()
        round_trip(neighbour, chunks=2, seed=2)
        neighbour.close()
    worker.pool.data[:, ids] = 0  # a kernel that still uses the blocks
    event.signal()
    assert gpu_site.answer(frames) == [b"", True]
    assert np.array_equal(worker.pool.data[:, ids], expected)
    event.unlink()


@pytest.mark.parametrize("event", [b"", b"x" * 80, b"\1" * 81, b"x" * 64])
def test_a_bad_event_fails_its_request_only(gpu_site: GpuSite, event: bytes) -> None:
    worker = gpu_site.worker(1)
    child = gpu_site.child()
    key = key_of(1, 1)
    reply = gpu_site.client.call("store", key, worker.instance, [[1, 2, 3, 4]], event)
    assert reply == [b"", False]
    assert gpu_site.found(key) == 0
    round_trip(worker, chunks=2)
    assert gpu_site.child() == child


def test_metrics_by_gpu(gpu_site: GpuSite) -> None:
    worker = gpu_site.worker(1)
    before = gpu_site.server.metrics()
    round_trip(worker, chunks=2)
    after = gpu_site.server.metrics()

    def more(name: str, **labels: str) -> float:
        name = f"lmcache_mp_{name}"
        return after.total(name, **labels) - before.total(name, **labels)

    for direction in ("store", "load"):
        labels = {"device": worker.pool.uuid, "direction": direction}
        assert more("transfer_bytes_total", **labels) == 2 * 4 * 2 * 1024
        assert more("gpu_transfer_phase_seconds_count", **labels, phase="event") == 1
        assert more("gpu_transfer_phase_seconds_count", **labels, phase="copy") == 1
    wait_until(
        lambda: gpu_site.server.metrics().total("lmcache_mp_l1_memory_pinned_bytes") == 1 << 28,
        "all of the arena pinned in the background",
    )


def set_handle(index: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda descriptor: descriptor["handle"].__setitem__(index, value)


def set_uuid(value: str) -> Callable[[dict[str, Any]], Any]:
    return lambda descriptor: descriptor["metadata"].__setitem__("device_uuid", value)


def make_vmm(descriptor: dict[str, Any]) -> None:
    descriptor["type"] = "cuda_vmm"


UNKNOWN = "00000000-0000-0000-0000-000000000000"
UNMAPPABLE = {
    "an expandable segment": set_handle(1, b"\3e" + bytes(64)),
    "the VMM API": make_vmm,
    "a short handle": set_handle(1, b"\2c" + bytes(63)),
    "no handle": set_handle(1, None),
    "memory that is gone": set_handle(1, b"\2cfakegpu_none".ljust(66, b"\0")),
    "more than the allocation": set_handle(3, 1 << 30),
    "no UUID": set_uuid("0"),
    "another GPU": set_uuid(UNKNOWN),
}


@pytest.mark.parametrize("change", UNMAPPABLE.values(), ids=UNMAPPABLE)
def test_what_cannot_be_mapped_is_refused(
    gpu_site: GpuSite, change: Callable[[dict[str, Any]], Any]
) -> None:
    """Beside a worker that is served."""
    worker, pool = gpu_site.worker(1), GpuPool(as_torch=True)
    descriptors = [pool.descriptor(layer) for layer in range(2)]
    for descriptor in descriptors:
        change(descriptor)
    bad = GpuWorker(gpu_site.client, "gpu", 99, pool)
    registration = bad.registration([extension(descriptor) for descriptor in descriptors])
    assert gpu_site.client.call("register_kv_cache", *registration) is None
    assert gpu_site.server.instances() == shown(1)
    wait_until(lambda: len(gpu_site.children()) == 1, "no process for another GPU")
    assert pool.counts() == [1, 1, 1, 1], "whoever names a counter must have shared something"
    round_trip(worker, chunks=1)
    bad.close()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_a_gpu_worker_is_refused_for_good(server: Server) -> None:
    """It is told so once, and not made to register again and again."""
    with RawClient(server.url) as client:
        worker = GpuWorker(client, "gpu", 77)
        worker.register()
        assert not shown(77) & server.instances()
        wait_until(lambda: "no NVIDIA driver here" in server.stderr(), "the reason in the log")
        assert [client.call("ping", 77) for _ in range(3)] == [True] * 3
        assert worker.store(key_of(1, 1), [1, 2, 3, 4]) == [b"", False]
        worker.close()


def test_events_leave_nothing_behind(gpu_site: GpuSite) -> None:
    worker = gpu_site.worker(1)
    key = stored(worker, 1)

    def cycle(times: int) -> Footprint:
        for _ in range(times):
            event = Event(done=True)
            assert worker.retrieve(key, TARGET, event=event.handle) == [b"", True]
            event.unlink()
        return Footprint.of(gpu_site.server)

    level = cycle(50)
    cycle(500).assert_not_above(level)
