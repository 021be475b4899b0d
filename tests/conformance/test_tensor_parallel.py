"""Several workers of one model: every rank's piece counts, and MLA's one piece has many readers."""

from __future__ import annotations

from tests.conformance.rig import Rig, expect_moved
from tests.support.layouts import MLA, one_group


def test_a_hit_needs_both_ranks(rig: Rig, mode: str) -> None:
    ranks = [rig.worker(mode=mode, rank=rank, world=2) for rank in range(2)]
    scheduler = rig.scheduler(world=2)
    tokens, blocks = rig.tokens(3), rig.blocks(ranks[0], 3)
    assert ranks[0].store(tokens, blocks)
    assert scheduler.lookup(tokens) == 0
    assert ranks[1].store(tokens, [blocks[0][:4]], end=rig.chunk)
    assert scheduler.lookup(tokens) == 1
    scheduler.free(tokens, 0, rig.chunk)
    assert ranks[1].store(tokens, blocks)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))


def test_each_rank_gets_its_own_piece(rig: Rig, mode: str) -> None:
    ranks = [rig.worker(mode=mode, rank=rank, world=2) for rank in range(2)]
    scheduler = rig.scheduler(world=2)
    tokens, blocks = rig.tokens(2), rig.blocks(ranks[0], 2)
    target = rig.blocks(ranks[0], 2, first=20)
    for worker in ranks:
        assert worker.store(tokens, blocks)
    assert scheduler.lookup(tokens) == 2
    for worker in ranks:
        assert rig.server.leases() > 0
        before = worker.cache.image()
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, before, blocks, target)
    rig.server.assert_no_leases()


def test_free_releases_every_rank(rig: Rig, mode: str) -> None:
    ranks = [rig.worker(mode=mode, rank=rank, world=2) for rank in range(2)]
    scheduler = rig.scheduler(world=2)
    tokens = rig.tokens(3)
    for worker in ranks:
        assert worker.store(tokens, rig.blocks(worker, 3))
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, rig.chunk)
    for worker in ranks:
        ids = rig.blocks(worker, 2, first=20)
        assert worker.retrieve(tokens, ids, start=rig.chunk)
    rig.server.assert_no_leases()


def test_the_world_is_part_of_the_identity(rig: Rig, mode: str) -> None:
    """What one rank of two stored is not what a single worker wants."""
    half, whole = rig.worker(mode=mode, rank=0, world=2), rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(whole, 2)
    assert half.store(tokens, blocks)
    assert rig.scheduler().lookup(tokens) == 0
    assert not whole.retrieve(tokens, blocks)


def test_two_readers_of_one_latent_cache(rig: Rig, mode: str) -> None:
    """MLA: rank 0 stores for all; the objects stay held until both have read them."""
    caches = [one_group(MLA, seed=seed) for seed in (1, 2)]
    writer, reader = (rig.worker(cache, mode, readers=2) for cache in caches)
    scheduler = rig.scheduler(readers=2)
    tokens, blocks = rig.tokens(3), rig.blocks(writer, 3)
    target = rig.blocks(writer, 3, first=20)
    origin = writer.cache.image()
    assert writer.store(tokens, blocks)
    assert scheduler.lookup(tokens) == 3
    for worker in (writer, reader):
        assert rig.server.leases() > 0
        before = worker.cache.image()
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, origin, blocks, target)
    rig.server.assert_no_leases()


def test_free_releases_every_reader(rig: Rig, mode: str) -> None:
    workers = [rig.worker(one_group(MLA), mode, readers=2) for _ in range(2)]
    scheduler = rig.scheduler(readers=2)
    tokens = rig.tokens(2)
    assert workers[0].store(tokens, rig.blocks(workers[0], 2))
    assert scheduler.lookup(tokens) == 2
    scheduler.free(tokens, 0, len(tokens))
    rig.server.assert_no_leases()
    assert scheduler.lookup(tokens) == 2
    scheduler.free(tokens, 0, rig.chunk)
    for worker in workers:
        ids = rig.blocks(worker, 1, first=20)
        assert worker.retrieve(tokens, ids, start=rig.chunk)
    rig.server.assert_no_leases()
