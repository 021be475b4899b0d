"""What one request may do: ranges, salts, prefixes, repeats, skipped tokens, null blocks."""

from __future__ import annotations

import pytest

from tests.conformance.rig import Rig, assert_same, expect_moved, round_trip


def test_round_trip(rig: Rig, mode: str) -> None:
    round_trip(rig, rig.worker(mode=mode), chunks=5)


def test_a_store_is_found_by_the_very_next_lookup(rig: Rig, mode: str) -> None:
    """Published before it is answered, every time."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    for variant in range(50):
        tokens = rig.tokens(2, variant)
        assert worker.store(tokens, rig.blocks(worker, 2))
        assert scheduler.lookup(tokens) == 2
        scheduler.free(tokens, 0, len(tokens))


def test_tokens_beyond_whole_chunks_do_not_count(rig: Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens = rig.tokens(3)
    known = tokens[: 2 * rig.chunk + rig.chunk // 2]
    assert worker.store(known, rig.blocks(worker, 2), end=2 * rig.chunk)
    assert scheduler.lookup(known) == 2
    scheduler.free(known, 0, 2 * rig.chunk)
    assert scheduler.lookup(tokens) == 2
    scheduler.free(tokens, 0, 2 * rig.chunk)
    assert scheduler.lookup(tokens[: rig.chunk - 1]) == 0
    assert scheduler.lookup(()) == 0


def test_salts_are_separate_worlds(rig: Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    other = rig.blocks(worker, 2, first=20)
    origin = worker.cache.image()
    assert worker.store(tokens, blocks, salt="alice")
    assert scheduler.lookup(tokens, salt="bob") == 0
    assert scheduler.lookup(tokens) == 0
    assert not worker.retrieve(tokens, other, salt="bob")
    assert_same(worker.cache.image(), origin)
    assert worker.store(tokens, other, salt="bob")
    for salt, source in (("alice", blocks), ("bob", other)):
        before = worker.cache.image()
        target = rig.blocks(worker, 2, first=32)
        assert scheduler.lookup(tokens, salt=salt) == 2
        assert worker.retrieve(tokens, target, salt=salt)
        expect_moved(worker, before, origin, source, target)


def test_prefixes_that_diverge(rig: Rig, mode: str) -> None:
    """A hit is the longest stored prefix; equal tokens after another prefix are other chunks."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    one, two = rig.tokens(4), rig.tokens(4, 1)
    mixed = one[: 2 * rig.chunk] + two[2 * rig.chunk :]
    assert worker.store(one, rig.blocks(worker, 4))
    assert worker.store(two, rig.blocks(worker, 4, first=20))
    assert scheduler.lookup(mixed, "mixed") == 2
    scheduler.free(mixed, 0, 2 * rig.chunk, "mixed")
    swapped = two[: rig.chunk] + one[rig.chunk :]
    assert scheduler.lookup(swapped, "swapped") == 1
    scheduler.free(swapped, 0, rig.chunk, "swapped")
    assert worker.store(mixed, rig.blocks(worker, 2, first=9), start=2 * rig.chunk)
    assert scheduler.lookup(mixed, "mixed") == 4
    scheduler.free(mixed, 0, 4 * rig.chunk, "mixed")


def test_a_repeated_store_changes_nothing(rig: Rig, mode: str) -> None:
    """The first store's bytes stay; a later, longer one adds only what is new."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens = rig.tokens(4)
    origin = worker.cache.image()
    first, again = rig.blocks(worker, 2), rig.blocks(worker, 4, first=17)
    short = tokens[: 2 * rig.chunk]
    assert worker.store(short, first)
    assert worker.store(short, first)
    assert worker.store(tokens, again)
    assert scheduler.lookup(tokens) == 4
    before, target = worker.cache.image(), rig.blocks(worker, 4, first=32)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, [first[0] + again[0][8:]], target)


def test_successive_ranges_of_one_request(rig: Rig, mode: str) -> None:
    """Stored and brought back range by range, each with all tokens known so far."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(5), rig.blocks(worker, 5)
    origin = worker.cache.image()
    per_chunk = len(blocks[0]) // 5
    for number in range(5):
        ids = [blocks[0][number * per_chunk : (number + 1) * per_chunk]]
        start = number * rig.chunk
        assert worker.store(tokens, ids, start=start, end=start + rig.chunk)
    assert scheduler.lookup(tokens) == 5
    before, target = worker.cache.image(), rig.blocks(worker, 5, first=22)
    cut = 2 * rig.chunk
    head, tail = target[0][: 2 * per_chunk], target[0][2 * per_chunk :]
    assert worker.retrieve(tokens, [head], end=cut)
    assert worker.retrieve(tokens, [tail], start=cut)
    expect_moved(worker, before, origin, blocks, target)


def test_a_later_range_alone_is_no_prefix(rig: Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 2), start=rig.chunk)
    assert scheduler.lookup(tokens) == 0
    assert worker.store(tokens, rig.blocks(worker, 1, first=20), end=rig.chunk)
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))


@pytest.mark.parametrize("skip_blocks", [1, 3, 4, 5, 8])
def test_skipped_tokens_are_not_written(rig: Rig, mode: str, skip_blocks: int) -> None:
    """Blocks at the front that running requests share keep what they hold."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    origin = worker.cache.image()
    assert worker.store(tokens, blocks)
    assert scheduler.lookup(tokens) == 2
    before, target = worker.cache.image(), rig.blocks(worker, 2, first=22)
    slots = worker.cache.groups[0].tokens_per_block
    assert worker.retrieve(tokens, target, skip=skip_blocks * slots)
    expect_moved(worker, before, origin, [blocks[0][skip_blocks:]], [target[0][skip_blocks:]])


def test_a_skip_inside_a_block_is_floored(rig: Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    origin = worker.cache.image()
    assert worker.store(tokens, blocks)
    assert scheduler.lookup(tokens) == 2
    before, target = worker.cache.image(), rig.blocks(worker, 2, first=22)
    slots = worker.cache.groups[0].tokens_per_block
    assert worker.retrieve(tokens, target, skip=2 * slots + slots // 2)
    expect_moved(worker, before, origin, [blocks[0][2:]], [target[0][2:]])


def test_chunks_of_null_blocks_are_not_stored(rig: Rig) -> None:
    """Block 0 holds nothing: a chunk of null blocks is passed over, the store still succeeds."""
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens, blocks = rig.tokens(3), rig.blocks(worker, 3)[0]
    middle = [*blocks[:4], 0, 0, 0, 0, *blocks[8:]]
    assert worker.store(tokens, [middle])
    assert scheduler.lookup(tokens) == 1
    scheduler.free(tokens, 0, rig.chunk)
    assert not worker.retrieve(tokens, rig.blocks(worker, 3, first=20))
    assert worker.store(tokens, [blocks])
    assert scheduler.lookup(tokens) == 3
    scheduler.free(tokens, 0, len(tokens))


def test_one_request_id_for_everything(rig: Rig, mode: str) -> None:
    """A request id that comes again with other tokens means those tokens, and nothing of before."""
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    for variant in range(4):
        tokens, chunks = rig.tokens(1 + variant, variant), 1 + variant
        assert scheduler.lookup(tokens, "same") == 0
        assert worker.store(tokens, rig.blocks(worker, chunks), request="same")
        assert scheduler.lookup(tokens, "same") == chunks
        assert worker.retrieve(tokens, rig.blocks(worker, chunks, first=20), request="same")
    rig.server.assert_no_leases()


def test_unknown_models_and_worlds_find_nothing(rig: Rig, mode: str) -> None:
    worker = rig.worker(mode=mode)
    tokens = rig.tokens(2)
    assert worker.store(tokens, rig.blocks(worker, 2))
    assert rig.scheduler(model=rig.model + "-never").lookup(tokens) == 0
    assert rig.scheduler(world=2).lookup(tokens) == 0
    assert rig.scheduler().lookup(rig.tokens(2, 1)) == 0


def test_a_retrieve_without_a_lookup(rig: Rig, mode: str) -> None:
    """Nothing holds the objects, but they are there."""
    worker = rig.worker(mode=mode)
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    origin = worker.cache.image()
    assert worker.store(tokens, blocks)
    before, target = worker.cache.image(), rig.blocks(worker, 2, first=22)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, blocks, target)


def test_a_retrieve_that_lacks_one_chunk_writes_nothing(rig: Rig, mode: str) -> None:
    worker = rig.worker(mode=mode)
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 2), end=2 * rig.chunk)
    before = worker.cache.image()
    assert not worker.retrieve(tokens, rig.blocks(worker, 3, first=22))
    assert_same(worker.cache.image(), before)
