"""GPUs that fail, hang and disappear: what is cached stays, and no byte is wrong."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_gpu import ILLEGAL, OTHER_UUID
from tests.support.gpu_site import GpuSite, fake_gpu, gpu_server_in, key_of
from tests.support.gpu_worker import Event, GpuPool, GpuWorker, Timeline
from tests.support.raw import RawClient
from tests.support.server import wait_until

GPU_SECONDS = 2.0
INVALID, OUT_OF_MEMORY, SAME_PID = 1, 2, 201
SYSTEM_CALL_FAILED, INVALID_HANDLE = 304, 400
SOURCE, TARGET = [9, 2, 30, 7, 5, 33, 12, 21], [50, 41, 60, 38, 44, 61, 47, 55]
NO = [b"", False]


def prove(worker: GpuWorker, key: Any) -> None:
    """What is cached under `key` is what SOURCE holds."""
    worker.pool.data[:, TARGET] = 0
    assert worker.retrieve(key, TARGET) == [b"", True]
    assert np.array_equal(worker.pool.data[:, TARGET], worker.pool.data[:, SOURCE])


def mixed(count: int) -> list[int]:
    """Blocks of which no two are neighbours in memory as in the request."""
    return [int(b) for b in np.random.default_rng(1).permutation(count) + 1]


def stored(worker: GpuWorker, seed: int) -> Any:
    """The key of a request that is cached now."""
    key = key_of(seed, 2, worker.model)
    assert worker.store(key, SOURCE) == [b"", True]
    return key


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
        neighbour = GpuWorker(other, "gpu", 1, worker.pool)
        prove(neighbour, stored(neighbour, 2))
    assert gpu_site.answer(frames) == NO
    assert gpu_site.child() == child
    assert gpu_site.found(key_of(1, 2)) == 0


def test_a_worker_that_leaves_while_its_events_are_open(gpu_site: GpuSite) -> None:
    """All its requests are answered and its memory is let go, beside one that stays."""
    worker, staying, event = gpu_site.worker(1), gpu_site.worker(2), Event()
    requests = [
        gpu_site.client.frames("store", *worker.request(key_of(n, 2), SOURCE, event.handle))
        for n in range(20)
    ]
    leave = gpu_site.client.frames("unregister_kv_cache", 1)
    for frames in [*requests, leave]:
        gpu_site.client.send(frames)
    unanswered = {frames[0] for frames in [*requests, leave]}
    while unanswered:
        unanswered.discard(gpu_site.client.receive()[0])
    wait_until(lambda: not gpu_site.has_mapped(worker.pool), "the memory unmapped")
    prove(staying, stored(staying, 30))
    gpu_site.server.assert_no_leases()


def test_the_memory_of_a_dead_worker_is_let_go(gpu_site: GpuSite) -> None:
    """Its connection is gone, in the middle of transfers whose event never happens."""
    staying, event = gpu_site.worker(1), Event()
    kept = stored(staying, 1)
    with RawClient(gpu_site.server.url) as other:
        dead = GpuWorker(other, "gpu", 2)
        dead.register()
        for seed in range(10, 15):
            other.send(other.frames("store", *dead.request(key_of(seed, 2), SOURCE, event.handle)))
        wait_until(lambda: gpu_site.server.leases() > 0, "its stores are under way")
        assert gpu_site.has_mapped(dead.pool)

    def let_go() -> bool:
        assert gpu_site.client.call("ping", 1) is True
        return not gpu_site.has_mapped(dead.pool)

    wait_until(let_go, "its memory unmapped", 20)
    prove(staying, kept)
    gpu_site.server.assert_no_leases()
    dead.pool.unlink()
    dead.done.unlink()


def test_a_worker_under_the_same_process_id(gpu_site: GpuSite) -> None:
    """Two containers with process 1 each: refused with what to do, accepted when cured."""
    gpu_site.fail({"call": "map_memory", "code": SAME_PID})
    worker = gpu_site.worker(1)
    assert gpu_site.server.instances() == set()
    wait_until(lambda: "share one PID" in gpu_site.server.stderr(), "the reason in the log")
    gpu_site.fail()
    gpu_site.reregister(worker)
    prove(worker, stored(worker, 1))


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
    long, quick = gpu_site.worker(1, pool), gpu_site.worker(2)
    key = stored(quick, 1)
    gpu_site.fail({"call": "stream", "delay": 0.1})
    frames = gpu_site.client.frames("store", *long.request(key_of(2, 150), mixed(600)))
    gpu_site.client.send(frames)
    with RawClient(gpu_site.server.url) as other:
        loader = GpuWorker(other, "gpu", 2, quick.pool)
        prove(loader, key)
        assert gpu_site.server.leases() > 0, "the store had ended before"
    gpu_site.fail()
    assert gpu_site.answer(frames) == [b"", True]


def test_an_event_that_cannot_be_looked_at(gpu_site: GpuSite) -> None:
    """Its request fails alone, and the memory of its word is let go with its worker."""
    staying, worker, timeline = gpu_site.worker(1), gpu_site.worker(2), Timeline(4096)
    child = gpu_site.child()
    gpu_site.fail({"call": "read_word", "code": INVALID})
    key = key_of(1, 2)
    assert worker.store(key, SOURCE, timeline.event(1)) == NO
    gpu_site.fail({"call": "is_done", "nth": 1, "code": INVALID_HANDLE})
    assert worker.store(key, SOURCE, Event().handle) == NO
    gpu_site.fail({"call": "destroy_event", "code": INVALID_HANDLE})
    assert worker.store(key, SOURCE) == [b"", True]
    gpu_site.fail()
    gpu_site.client.call("unregister_kv_cache", 2)
    maps = Path(f"/proc/{child}/maps")
    wait_until(lambda: timeline.name not in maps.read_text(), "the words unmapped")
    prove(staying, stored(staying, 2))
    timeline.unlink()


def test_memory_that_the_system_does_not_let_us_open(gpu_site: GpuSite) -> None:
    """Another /dev/shm than the worker's: nobody else is the worse for it."""
    worker, child = gpu_site.worker(1), gpu_site.child()
    for call in ("open_event", "map_memory"):
        gpu_site.fail({"call": call, "code": SYSTEM_CALL_FAILED})
        other = gpu_site.worker(2)
        assert other.store(key_of(1, 2), SOURCE) == NO
        other.close()
    gpu_site.fail()
    prove(worker, stored(worker, 2))
    assert gpu_site.child() == child


def test_groups_that_name_the_same_tensors_again_and_again(gpu_site: GpuSite) -> None:
    """A chunk of them would keep the process of the GPU busy for minutes, and fill the memory."""
    worker, pool = gpu_site.worker(1), GpuPool(layers=300)
    hostile = GpuWorker(gpu_site.client, "gpu", 2, pool)
    group = {"engine_group_id": 0, "layer_indices": list(range(300))}
    gpu_site.client.call("register_kv_cache", *hostile.registration()[:-1], [group] * 64)
    assert gpu_site.server.instances() == {1}
    prove(worker, stored(worker, 1))
    hostile.close()


def test_the_last_worker_leaves_in_the_middle_of_a_copy(gpu_site: GpuSite) -> None:
    """The process ends when the copy has, and torch hears that its memory is free."""
    worker = gpu_site.worker(1, GpuPool(as_torch=True))
    gpu_site.fail({"call": "stream", "delay": 0.3})
    frames = gpu_site.client.frames("store", *worker.request(key_of(1, 2), SOURCE))
    gpu_site.client.send(frames)
    leave = gpu_site.client.frames("unregister_kv_cache", 1)
    gpu_site.client.send(leave)
    assert gpu_site.answer(frames) == NO
    wait_until(lambda: not gpu_site.children(), "the process ended")
    counts = np.frombuffer(worker.pool.counter.read_bytes(), np.int64)
    assert counts.tolist() == [0, 0, 1, 1]
