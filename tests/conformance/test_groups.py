"""Several KV groups in one registration (handle mode: the stock engine mode has one group)."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.rig import Rig, assert_same, expect_moved, round_trip
from tests.support.layouts import (
    FUSED,
    KV_FIRST_NHD,
    LAYOUTS,
    MLA,
    SLOTS,
    Group,
    KVCache,
    Layout,
    merge,
    one_group,
)

INDEXER = next(layout for layout in LAYOUTS if layout.name == "indexer")


def test_two_groups_of_different_shapes(rig: Rig) -> None:
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2, heads=5, size=4, layers=2))
    round_trip(rig, rig.worker(cache))


@pytest.mark.parametrize("second", [MLA, INDEXER, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_two_groups_of_different_formats(rig: Rig, second: Layout) -> None:
    """A main cache and, for example, the plane of a sparse-attention indexer beside it."""
    cache = merge(one_group(KV_FIRST_NHD, seed=1), one_group(second, seed=2))
    round_trip(rig, rig.worker(cache))


def test_groups_of_different_block_sizes(rig: Rig) -> None:
    """Each group has as many block ids a chunk as its own block size asks for."""
    cache = merge(one_group(FUSED, seed=1, slots=32), one_group(FUSED, seed=2, slots=16, blocks=60))
    round_trip(rig, rig.worker(cache))


def test_groups_of_different_element_types(rig: Rig) -> None:
    cache = merge(
        one_group(FUSED, seed=1, dtype="uint8"), one_group(FUSED, seed=2, dtype="float32")
    )
    round_trip(rig, rig.worker(cache))


def test_a_block_that_stands_for_more_tokens_than_it_has_slots(rig: Rig) -> None:
    """A compressed group: 32 tokens a block in 16 slots."""
    cache = merge(one_group(FUSED, seed=1), one_group(MLA, seed=2))
    cache.groups[1].tokens_per_block = 2 * SLOTS
    round_trip(rig, rig.worker(cache))


def test_an_unreported_block_size_means_the_slots(rig: Rig) -> None:
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2, slots=32))
    worker = rig.worker(cache, register=False)
    infos = cache.infos()
    silent = [type(i)(i.engine_group_id, i.layer_indices, tokens_per_block=0) for i in infos]
    cache.infos = lambda: silent  # type: ignore[method-assign]
    worker.register()
    round_trip(rig, worker)


def test_one_announced_group_equals_none(rig: Rig) -> None:
    """A worker that names its only group reads what one that names none has stored."""
    plain = rig.worker(one_group(FUSED, seed=1))
    named = rig.worker(merge(one_group(FUSED, seed=1)))
    tokens, blocks = rig.tokens(2), rig.blocks(plain, 2)
    assert plain.store(tokens, blocks)
    origin = named.cache.image()
    named.cache.wipe(blocks)
    before = named.cache.image()
    assert named.retrieve(tokens, blocks)
    expect_moved(named, before, origin, blocks, blocks)


def test_layers_of_no_group_are_left_alone(rig: Rig) -> None:
    """Layers that share another layer's cache, or scratch, are registered but never moved."""
    cache = merge(one_group(FUSED, seed=1))
    extra = one_group(FUSED, seed=9, layers=1).tensors["layer.0"]
    cache.tensors = {"scratch": extra, **cache.tensors}
    before = extra.clone()
    round_trip(rig, rig.worker(cache))
    assert torch.equal(cache.tensors["scratch"].view(torch.uint8), before.view(torch.uint8))


def test_layers_of_two_groups_interleaved(rig: Rig) -> None:
    """Group membership goes by index, not by order: full and local attention take turns."""
    base = one_group(FUSED, layers=6)
    names = list(base.tensors)
    groups = [Group(names[0::2]), Group(names[1::2])]
    round_trip(rig, rig.worker(KVCache(base.tensors, "HND", groups, announce_groups=True)))


def test_sliding_window_with_null_blocks_in_front(rig: Rig) -> None:
    """vLLM has given up the early blocks of the window group: its ids are the null block's."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens, chunks = rig.tokens(4), 4
    full, window = rig.blocks(worker, chunks)
    early = len(window) // 2
    source = [full, [0] * early + window[early:]]
    origin = cache.image()
    assert worker.store(tokens, source)
    assert scheduler.lookup(tokens) == chunks
    to_full, to_window = rig.blocks(worker, chunks, first=22)
    before = cache.image()
    assert worker.retrieve(tokens, [to_full, [0] * early + to_window[early:]])
    now = cache.image()
    for image in (now, before):  # what the null block holds means nothing
        for layer in image.values():
            layer[0] = 0
    for layers, origin_ids, ids in (
        (cache.groups[0].layers, full, to_full),
        (cache.groups[1].layers, window[early:], to_window[early:]),
    ):
        for layer in layers:
            before[layer][ids] = origin[layer][origin_ids]
    assert_same(now, before)


def test_a_prefix_whose_window_was_never_stored_is_no_hit(rig: Rig) -> None:
    """The shorter prefix would need window blocks that were null when it was stored."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens = rig.tokens(4)
    full, window = rig.blocks(worker, 4)
    early = len(window) // 2
    assert worker.store(tokens, [full, [0] * early + window[early:]])
    assert scheduler.lookup(tokens[: 2 * rig.chunk], "short") == 0
    assert scheduler.lookup(tokens[: 3 * rig.chunk], "long") == 3
    scheduler.free(tokens, 0, 3 * rig.chunk, "long")


def test_a_later_store_completes_what_was_stored_with_null_blocks(rig: Rig) -> None:
    """Otherwise the shorter prefix would be computed again and again, and never found."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens, source = rig.tokens(2), rig.blocks(worker, 2)
    origin = cache.image()
    assert worker.store(tokens, [source[0], [0] * len(source[1])])
    assert scheduler.lookup(tokens) == 0
    assert worker.store(tokens, source)
    assert scheduler.lookup(tokens) == 2
    before, target = cache.image(), rig.blocks(worker, 2, first=20)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, source, target)


def test_window_blocks_that_were_never_stored_are_never_written(rig: Rig) -> None:
    """What was null when it was stored must not overwrite real blocks with nonsense."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker = rig.worker(cache)
    tokens, (full, window) = rig.tokens(2), rig.blocks(worker, 2)
    half = len(window) // 2
    assert worker.store(tokens, [full, [0] * half + window[half:]])
    before, (to_full, to_window) = cache.image(), rig.blocks(worker, 2, first=20)
    worker.retrieve(tokens, [to_full, to_window])
    now = cache.image()
    for layer in cache.groups[1].layers:
        early = to_window[:half]
        assert torch.equal(now[layer][early], before[layer][early])


def test_null_in_every_group_is_not_stored(rig: Rig) -> None:
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens = rig.tokens(2)
    first, second = rig.blocks(worker, 2)
    half = len(first) // 2
    nulls = [0] * half
    assert worker.store(tokens, [first[:half] + nulls, second[:half] + nulls])
    assert scheduler.lookup(tokens) == 1
    scheduler.free(tokens, 0, rig.chunk)


@pytest.mark.parametrize("groups", [1, 2])
def test_null_in_a_group_without_a_window_is_not_stored(rig: Rig, groups: int) -> None:
    """A window that the client does not tell: what vLLM has given up is nobody's prefix."""
    caches = [one_group(FUSED, seed=1 + group) for group in range(groups)]
    worker, scheduler = rig.worker(merge(*caches)), rig.scheduler()
    tokens, source = rig.tokens(3), rig.blocks(worker, 3)
    per_chunk = len(source[-1]) // 3
    origin = worker.cache.image()
    for name, stored in (("begin", 0), ("middle", 1)):
        lacking = source[-1].copy()
        lacking[stored * per_chunk] = 0
        other = rig.tokens(3, variant=stored + 1)
        assert worker.store(other, [*source[:-1], lacking])
        assert scheduler.lookup(other, name) == stored
        scheduler.free(other, 0, stored * rig.chunk, name)
        assert rig.server.status()["refusals"]["null_block"]
    assert worker.store(tokens, source)
    assert scheduler.lookup(tokens) == 3
    before, target = worker.cache.image(), rig.blocks(worker, 3, first=20)
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, source, target)


def test_skipped_tokens_of_groups_of_different_block_sizes(rig: Rig) -> None:
    cache = merge(one_group(FUSED, seed=1, slots=32), one_group(FUSED, seed=2, slots=16))
    worker = rig.worker(cache)
    tokens, source = rig.tokens(2), rig.blocks(worker, 2)
    origin = cache.image()
    assert worker.store(tokens, source)
    before, target = cache.image(), rig.blocks(worker, 2, first=16)
    assert worker.retrieve(tokens, target, skip=32)
    expect_moved(
        worker, before, origin, [source[0][1:], source[1][2:]], [target[0][1:], target[1][2:]]
    )


def test_one_list_too_few_or_too_many(rig: Rig) -> None:
    """The number of block lists is the number of groups."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    assert not worker.store(tokens, blocks[:1])
    assert not worker.store(tokens, [])
    assert scheduler.lookup(tokens) == 0
    assert worker.store(tokens, blocks)
    before = cache.image()
    assert not worker.retrieve(tokens, [blocks[0]])
    assert_same(cache.image(), before)
