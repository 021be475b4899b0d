"""Planning of copies, against a loop that copies block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda.plan import (
    SHORT_BYTES,
    STEP_BYTES,
    STEP_RUNS,
    GroupTable,
    PlaneSet,
    Runs,
    plan,
    runs_of,
    split,
    steps_of,
    windows,
)

DEVICE_BYTES = 4096


@st.composite
def transfers(draw: Any) -> tuple[Any, list[GroupTable], int]:
    """Offsets of objects, their groups, and how long an object is."""
    chunks, groups, size = draw(st.integers(1, 4)), [], 0
    for _ in range(draw(st.integers(1, 2))):
        blocks_a_chunk, sets = draw(st.integers(1, 4)), []
        for run in draw(st.lists(st.sampled_from([1, 3, 8, 16]), min_size=1, max_size=2)):
            planes = draw(st.integers(1, 3))
            strides = draw(st.lists(st.integers(run, 40), min_size=planes, max_size=planes))
            starts = draw(st.lists(st.integers(0, 900), min_size=planes, max_size=planes))
            owners = draw(st.lists(st.integers(0, 1), min_size=planes, max_size=planes))
            sets.append(PlaneSet(run, *map(np.array, (starts, strides, owners))))
            size += run * planes * blocks_a_chunk
        shape = (chunks, blocks_a_chunk)
        count = chunks * blocks_a_chunk
        ids = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
        wanted = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))
        mask = None if wanted is None else np.array(wanted, bool).reshape(shape)
        groups.append(GroupTable(sets, np.array(ids).reshape(shape), mask))
    gaps = draw(st.lists(st.integers(0, 8), min_size=chunks, max_size=chunks))
    offsets = np.cumsum([gap + size for gap in gaps]) - size
    return offsets, groups, size


def one_by_one(offsets: Any, groups: list[GroupTable], device: Any, arena: Any) -> None:
    """Gather each block of each plane by itself."""
    for chunk, offset in enumerate(offsets):
        at = int(offset)
        for group in groups:
            for planes in group.planes:
                for start, stride in zip(planes.starts, planes.strides, strict=True):
                    for position, block in enumerate(group.blocks[chunk]):
                        begin = int(start + stride * block)
                        if group.wanted is None or group.wanted[chunk, position]:
                            arena[at : at + planes.run] = device[begin : begin + planes.run]
                        at += planes.run


def copy(runs: Runs, device: Any, arena: Any) -> None:
    for begin, offset, size in zip(runs.device, runs.offset, runs.size, strict=True):
        arena[offset : offset + size] = device[begin : begin + size]


@given(transfers(), st.integers(1, 50))
@settings(max_examples=200)
def test_runs_move_what_a_loop_over_blocks_moves(transfer: Any, piece: int) -> None:
    offsets, groups, size = transfer
    device = np.random.default_rng(0).integers(1, 255, DEVICE_BYTES, np.uint8)
    length = int(offsets[-1]) + size
    expected, got = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    one_by_one(offsets, groups, device, expected)
    runs = split(runs_of(offsets, groups), piece)
    copy(runs, device, got)
    assert np.array_equal(expected, got)
    assert (runs.size > 0).all()
    assert (runs.offset // piece == (runs.offset + runs.size - 1) // piece).all()
    order = np.argsort(runs.offset)
    assert (runs.offset[order][1:] >= (runs.offset + runs.size)[order][:-1]).all(), "overlap"


@given(transfers(), st.integers(1, 50))
def test_windows_bring_a_staging_buffer_to_its_places(transfer: Any, piece: int) -> None:
    offsets, groups, size = transfer
    device = np.random.default_rng(0).integers(1, 255, DEVICE_BYTES, np.uint8)
    length = int(offsets[-1]) + size
    runs = split(runs_of(offsets, groups), piece)
    staging = np.concatenate(
        [device[b : b + n] for b, n in zip(runs.device, runs.size, strict=True)] or [device[:0]]
    )
    expected, got = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    copy(runs, device, expected)
    copy(windows(runs, piece), staging, got)
    assert np.array_equal(expected, got)


def table(blocks: list[int], run: int, owners: tuple[int, ...] = (0,)) -> list[GroupTable]:
    starts = np.arange(len(owners)) * run * 1000
    planes = PlaneSet(run, starts, np.full(len(owners), run), np.array(owners))
    return [GroupTable([planes], np.array([blocks]), None)]


def test_neighbours_are_merged_within_an_allocation_only() -> None:
    at = np.array([0])
    assert runs_of(at, table([4, 5, 6, 9, 10], 100)).size.tolist() == [300, 200]
    assert runs_of(at, table([6, 5, 4], 100)).size.tolist() == [100, 100, 100]
    # Block 999 of the first plane and block 0 of the second one are adjacent by chance.
    planes = PlaneSet(100, np.array([0, 100]), np.array([0, 0]), np.array([0, 1]))
    apart = [GroupTable([planes], np.array([[0]]), None)]
    assert runs_of(at, apart).size.tolist() == [100, 100]


def every_other(count: int) -> list[int]:
    return list(range(0, 2 * count, 2))


def test_short_runs_are_staged_and_long_ones_are_not() -> None:
    at = np.array([0])
    short = steps_of(runs_of(at, table(every_other(64), SHORT_BYTES - 4096)), SHORT_BYTES)
    long = steps_of(runs_of(at, table(every_other(64), SHORT_BYTES)), SHORT_BYTES)
    few = steps_of(runs_of(at, table(every_other(8), 1024)), SHORT_BYTES)
    assert {step.staged for step in short} == {True}
    assert {step.staged for step in long} == {False}
    assert {step.staged for step in few} == {False}, "a kernel is not worth it"
    merged = steps_of(runs_of(at, table(list(range(64)), 1024)), SHORT_BYTES)
    assert [len(step.runs) for step in merged] == [1]


def test_portions_are_bounded() -> None:
    at = np.array([PIECE_BYTES - 4096])
    for run, count in ((16, 3 * STEP_RUNS), (8192, 10_000), (1 << 20, 200)):
        steps = steps_of(runs_of(at, table(every_other(count), run)), SHORT_BYTES)
        assert all(len(step.runs) <= STEP_RUNS for step in steps)
        assert all(step.runs.size.sum() <= STEP_BYTES for step in steps)
        assert sum(int(step.runs.size.sum()) for step in steps) == run * count
    merged = steps_of(runs_of(at, table(list(range(200)), 1 << 20)), SHORT_BYTES)
    assert max(int(step.runs.size.sum()) for step in merged) == PIECE_BYTES


def test_a_plan_is_made_a_few_chunks_at_a_time() -> None:
    """Its steps move what all runs together are, and the first is there before the last."""
    blocks = np.random.default_rng(0).permutation(4 * 1000).reshape(1000, 4)
    wanted = np.random.default_rng(1).random(blocks.shape) < 0.9
    planes = PlaneSet(8192, np.array([0, 1 << 40]), np.array([8192, 8192]), np.array([0, 1]))
    group = GroupTable([planes], blocks, wanted)
    offsets = np.random.default_rng(2).permutation(1000) * group.chunk_bytes
    steps = list(plan(offsets, [group], SHORT_BYTES))
    assert len(steps) > 1
    whole = runs_of(offsets, [group])

    def bytes_of(runs: Runs) -> set[tuple[int, int]]:
        """Each 8 KiB by where it comes from and where it goes."""
        return {
            (int(d) + i, int(o) + i)
            for d, o, n in zip(runs.device, runs.offset, runs.size, strict=True)
            for i in range(0, int(n), 8192)
        }

    pieces = [bytes_of(step.runs) for step in steps]
    assert set.union(*pieces) == bytes_of(whole)
    assert sum(map(len, pieces)) == len(bytes_of(whole))
