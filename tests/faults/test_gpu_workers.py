"""Workers that leave, die or send what is no use: nobody else on their GPU is the worse for it."""

from __future__ import annotations

from pathlib import Path

from tests.support.gpu_site import NO, SOURCE, GpuSite, key_of, prove, stored
from tests.support.gpu_worker import Event, GpuPool, GpuWorker, Timeline
from tests.support.raw import RawClient
from tests.support.server import shown, wait_until

GPU_SECONDS = 2.0
INVALID, SAME_PID, SYSTEM_CALL_FAILED, INVALID_HANDLE, NOT_PERMITTED = 1, 201, 304, 400, 800


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


def test_a_handle_whose_memory_is_still_mapped(gpu_site: GpuSite) -> None:
    """A container that starts anew may repeat pid and addresses, and so the bytes of a handle.

    Its registration waits until the memory of its former life is let go.
    """
    staying, old = gpu_site.worker(1), gpu_site.worker(2)
    kept = stored(old, 1)
    new = GpuWorker(gpu_site.client, "gpu", 3, old.pool)
    frames = gpu_site.client.frames("register_kv_cache", *new.registration())
    gpu_site.client.send(frames)
    prove(staying, stored(staying, 2))
    assert gpu_site.server.instances() == shown(1, 2), "it waits, and nobody else does"
    event = Event()
    pending = gpu_site.client.frames("store", *old.request(key_of(3, 2), SOURCE, event.handle))
    leave = gpu_site.client.frames("unregister_kv_cache", 2)
    for message in (pending, leave):
        gpu_site.client.send(message)
    unanswered = {message[0] for message in (frames, pending, leave)}
    while unanswered:
        unanswered.discard(gpu_site.client.receive()[0])
    assert gpu_site.server.instances() == shown(1, 3)
    prove(new, kept)
    new.close()
    event.unlink()


def test_a_handle_of_a_worker_that_stays(gpu_site: GpuSite) -> None:
    """Nobody can tell whose memory that is: refused, and the worker is made to try again."""
    worker, timeline = gpu_site.worker(1), Timeline(4096)
    twin = GpuWorker(gpu_site.client, "gpu", 2, worker.pool)
    twin.register()
    assert gpu_site.server.instances() == shown(1)
    prove(worker, stored(worker, 1))
    timeline.write(1)
    assert worker.store(key_of(2, 2), SOURCE, timeline.event(1)) == [b"", True]
    other = gpu_site.worker(3)
    assert other.store(key_of(3, 2), SOURCE, timeline.event(1)) == NO, "the same for events"
    timeline.unlink()


def test_a_driver_that_does_not_tell_how_large_allocations_are(gpu_site: GpuSite) -> None:
    """What the worker says of its tensors is believed, as far as it says it."""
    gpu_site.fail({"call": "size", "code": 500})
    worker = gpu_site.worker(1)
    prove(worker, stored(worker, 1))


def test_memory_that_may_not_be_pinned(gpu_site: GpuSite) -> None:
    """It is copied as it is."""
    gpu_site.fail({"call": "pin", "code": NOT_PERMITTED})
    worker, child = gpu_site.worker(1), gpu_site.child()
    prove(worker, stored(worker, 1))
    assert gpu_site.child() == child
    assert "0 MiB of the L1 are pinned" in gpu_site.server.stderr()


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
    layers = list(range(300))
    group = {"engine_group_id": 0, "layer_indices": layers, "recurrent_state": False}
    gpu_site.client.call("register_kv_cache", *hostile.registration()[:-1], [group] * 64)
    assert gpu_site.server.instances() == shown(1)
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
    wait_until(lambda: worker.pool.counts() == [0, 0, 1, 1], "torch has heard of it")
