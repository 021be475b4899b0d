"""Registrations: repeated, replaced, ended, unknown, and several in one arena."""

from __future__ import annotations

import torch

from tests.conformance.rig import Rig, assert_same, expect_moved, round_trip
from tests.support.client import HANDLE, TIMEOUT, Worker
from tests.support.layouts import FUSED, FUSED_NHD, MLA, KVCache, one_group
from tests.support.server import Server, shown


def reregister(worker: Worker, cache: KVCache) -> None:
    """The same instance id with other tensors, as after a restart with a recycled pid."""
    worker.cache = cache
    worker.register()


def test_registering_again_with_the_same_tensors(rig: Rig, mode: str) -> None:
    worker = rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.store(tokens, blocks)
    worker.register()
    origin, target = worker.cache.image(), rig.blocks(worker, 2, first=20)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, origin, origin, blocks, target)
    assert shown(worker.instance) <= rig.server.instances()


def test_new_tensors_replace_the_mapping(rig: Rig, mode: str) -> None:
    """What was stored from the old tensors arrives in the new ones; the old stay as they are."""
    worker = rig.worker(mode=mode)
    old, tokens, blocks = worker.cache, rig.tokens(2), rig.blocks(worker, 2)
    origin = old.image()
    assert worker.store(tokens, blocks)
    reregister(worker, one_group(FUSED, seed=77))
    before, target = worker.cache.image(), rig.blocks(worker, 2, first=20)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, blocks, target)
    assert_same(old.image(), origin)


def test_a_smaller_cache_replaces_a_larger_one(rig: Rig) -> None:
    """Block ids are checked against the tensors of today."""
    worker = rig.worker(one_group(FUSED, blocks=48))
    tokens = rig.tokens(2)
    assert worker.store(tokens, rig.blocks(worker, 2, first=40))
    reregister(worker, one_group(FUSED, blocks=24))
    assert not worker.retrieve(tokens, rig.blocks(worker, 2, first=20))
    assert worker.retrieve(tokens, rig.blocks(worker, 2))


def test_replacing_while_a_store_runs(rig: Rig) -> None:
    """The old mapping lives until its transfer has ended; the answer is yes or no, and true."""
    big = {"layers": 16, "blocks": 260, "heads": 8, "size": 64}
    worker = rig.worker(one_group(FUSED, **big))  # type: ignore[arg-type]
    origin = worker.cache.image()
    tokens, blocks = rig.tokens(32), rig.blocks(worker, 32)
    future = worker.begin_store(tokens, blocks)
    reregister(worker, one_group(FUSED, seed=5, **big))  # type: ignore[arg-type]
    stored = future.result(TIMEOUT)
    scheduler = rig.scheduler()
    found = scheduler.lookup(tokens)
    assert found == (32 if stored else 0)
    if stored:
        before, target = worker.cache.image(), rig.blocks(worker, 32, first=130)
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, origin, blocks, target)
    rig.scheduler().clear(force=True)


def test_unregistered_instances_are_refused(rig: Rig) -> None:
    worker = rig.worker()
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    assert worker.store(tokens, blocks)
    worker.unregister()
    assert not shown(worker.instance) & rig.server.instances()
    key = worker.key(tokens, 0, rig.chunk, worker=0)
    refused = (b"", False)
    event = b"stub_ipc_handle"
    rpc = worker.rpc
    assert rpc.store(key, worker.instance, blocks, event).result(TIMEOUT) == refused
    assert rpc.retrieve(key, worker.instance, blocks, event, 0).result(TIMEOUT) == refused
    context = rpc.prepare_store(key, worker.instance).result(TIMEOUT).context
    assert context == {"slots": [], "chunk_indices": []}
    assert rpc.commit_store(key, worker.instance, b"").result(TIMEOUT) is False
    found = rpc.prepare_retrieve(key, worker.instance).result(TIMEOUT)
    assert (found.success, found.data, found.context) == (False, b"", {})
    assert rpc.commit_retrieve(key, worker.instance).result(TIMEOUT) is True


def test_a_retrieve_of_a_forgotten_worker_gives_back_its_locks(rig: Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.store(tokens, blocks)
    assert scheduler.lookup(tokens) == 2
    worker.unregister()
    assert not worker.retrieve(tokens, blocks)
    rig.server.assert_no_leases()


def test_what_a_worker_stored_outlives_it(rig: Rig, mode: str) -> None:
    first = rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(first, 2)
    origin = first.cache.image()
    assert first.store(tokens, blocks)
    first.unregister()
    second = rig.worker(one_group(FUSED, seed=8), mode)
    assert rig.scheduler().lookup(tokens) == 2
    before = second.cache.image()
    assert second.retrieve(tokens, blocks)
    expect_moved(second, before, origin, blocks, blocks)


def test_a_reservation_dies_with_its_worker(rig: Rig) -> None:
    """Prepared, never committed, unregistered: nothing became visible, nothing stays held."""
    worker = rig.worker(mode="engine_driven")
    tokens = rig.tokens(2)
    key = worker.key(tokens, 0, len(tokens), worker=0)
    context = worker.rpc.prepare_store(key, worker.instance).result(TIMEOUT).context
    assert context["chunk_indices"] == [0, 1]
    assert rig.server.leases() > 0
    assert rig.scheduler().lookup(tokens) == 0
    worker.unregister()
    rig.server.assert_no_leases()
    assert worker.rpc.commit_store(key, worker.instance, b"").result(TIMEOUT) is False
    assert rig.scheduler().lookup(tokens) == 0


def test_two_models_share_the_arena(rig: Rig, mode: str) -> None:
    one = rig.worker(one_group(FUSED, seed=1), mode, model="one")
    two = rig.worker(one_group(FUSED, seed=2), mode, model="two")
    tokens, blocks = rig.tokens(2), rig.blocks(one, 2)
    target = rig.blocks(one, 2, first=20)
    assert one.store(tokens, blocks)
    assert rig.scheduler(model="two").lookup(tokens) == 0
    assert two.store(tokens, blocks)
    for worker in (one, two):
        assert rig.scheduler(model=worker.model).lookup(tokens) == 2
        before = worker.cache.image()
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, before, blocks, target)


def test_two_layouts_of_one_model(rig: Rig) -> None:
    """Equal sizes, other meaning: a worker never gets bytes that another layout stored."""
    hnd = rig.worker(one_group(FUSED, seed=1))
    nhd = rig.worker(one_group(FUSED_NHD, seed=2))
    latent = rig.worker(one_group(MLA, seed=3))
    workers = (hnd, nhd, latent)
    tokens, blocks = rig.tokens(2), rig.blocks(hnd, 2)
    target = rig.blocks(hnd, 2, first=20)
    assert hnd.store(tokens, blocks)
    for other in (nhd, latent):
        before = other.cache.image()
        assert not other.retrieve(tokens, target)
        assert_same(other.cache.image(), before)
    for worker in (nhd, latent):
        assert worker.store(tokens, blocks)
    for worker in workers:
        before = worker.cache.image()
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, before, blocks, target)


def test_the_element_type_is_part_of_the_layout(rig: Rig) -> None:
    half = rig.worker(one_group(FUSED, seed=1, dtype="float16"))
    brain = rig.worker(one_group(FUSED, seed=2, dtype="bfloat16"))
    tokens, blocks = rig.tokens(1), rig.blocks(half, 1)
    assert half.store(tokens, blocks)
    before = brain.cache.image()
    assert not brain.retrieve(tokens, blocks)
    assert_same(brain.cache.image(), before)


def test_workers_of_both_modes_at_once(rig: Rig) -> None:
    handle = rig.worker(mode=HANDLE, model="handle")
    engine = rig.worker(mode="engine_driven", model="engine")
    status = rig.server.status()
    assert set(status["registered_gpu_ids"]) >= shown(handle.instance)
    assert set(status["registered_non_cuda_instance_ids"]) >= shown(engine.instance)
    assert torch.is_tensor(next(iter(engine.cache.tensors.values())))


def test_two_hundred_registrations(own_server: Server) -> None:
    """Again and again, without ever unregistering: only the last one counts."""
    rig = Rig(own_server, "again")
    worker = rig.worker()
    for _ in range(200):
        worker.register()
    round_trip(rig, worker)
    assert own_server.instances() == shown(worker.instance)
    rig.close()
