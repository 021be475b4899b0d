"""What the workers copy, and where: for any geometry, groups and partial chunks."""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from vllm.v1.kv_offload.cpu import gpu_worker as vllm_worker

from connectors.native import pinning, wire
from connectors.native.arena import Arena, Arenas, UnknownArena
from connectors.native.copier import Copier
from connectors.native.cpu_worker import CpuWorker
from connectors.native.geometry import Geometry, Part
from connectors.native.gpu_worker import ArenaRegion, GpuWorker
from connectors.native.membership import Membership
from connectors.native.transfer import ArenaSlots
from tests.support.server import SHM, wait_until

BLOCKS = 24
SERVER = b"s" * 16
DIRTY = 0xEE
PIECE = 64 << 10


class NoMembership:
    def stop(self) -> None:
        """As a worker that ends asks for it."""


@dataclass
class Case:
    """Tensors of one rank, and the groups that use them: (tensor, bytes of its page)."""

    blocks_per_chunk: int
    ranks: int
    rank: int
    pages: list[int]
    groups: list[list[tuple[int, int]]]
    padding: int

    def geometry(self) -> Geometry:
        share = sum(self.pages) * self.blocks_per_chunk + self.padding
        return Geometry(self.blocks_per_chunk, share, self.ranks, self.rank)

    def caches(self, seed: int) -> CanonicalKVCaches:
        random = np.random.default_rng(seed)
        tensors = [
            torch.from_numpy(random.integers(-128, 128, (BLOCKS, page), np.int8))
            for page in self.pages
        ]
        return CanonicalKVCaches(
            [CanonicalKVCacheTensor(t, p) for t, p in zip(tensors, self.pages, strict=True)],
            [[CanonicalKVCacheRef(*ref) for ref in group] for group in self.groups],
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pages = draw(st.lists(st.integers(1, 700), min_size=1, max_size=4))
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        used = draw(st.sets(st.integers(0, len(pages) - 1), min_size=1))
        groups.append([(t, draw(st.integers(1, pages[t]))) for t in sorted(used)])
    ranks = draw(st.integers(1, 3))
    rank = draw(st.integers(0, ranks - 1))
    return Case(draw(st.integers(1, 4)), ranks, rank, pages, groups, draw(st.integers(0, 5)))


def arena_of(folder: Path, size: int, name: str = "arena", server: bytes = SERVER) -> Arena:
    (folder / name).write_bytes(bytes([DIRTY]) * size)
    return Arena(server, name, size, folder)


def spec(groups: list[tuple[list[int], int]]) -> GPULoadStoreSpec:
    """For each group its blocks, and the index of the first in its sequence."""
    blocks = [block for ids, _ in groups for block in ids]
    return GPULoadStoreSpec(blocks, [len(ids) for ids, _ in groups], [index for _, index in groups])


def run(worker: Any, submit: Callable[..., bool], *args: Any) -> None:
    assert submit(1, *args)
    worker.wait({1})
    [result] = worker.get_finished()
    assert result.job_id == 1 and result.success and result.transfer_time >= 0


@settings(max_examples=150, deadline=None)
@given(case=cases(), data=st.data())
def test_what_is_loaded_is_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory, case: Case, data: st.DataObject
) -> None:
    geometry, per_chunk = case.geometry(), case.blocks_per_chunk
    step = geometry.object_bytes // 4096
    order = data.draw(st.permutations(range(6)))
    stored: list[tuple[list[int], int]] = []
    loaded: list[tuple[list[int], int]] = []
    slots: list[int] = []
    free = data.draw(st.permutations(range(BLOCKS)))
    for _ in case.groups:
        # The first blocks of a window's first chunk may be gone; a load may end within a chunk.
        chunks = data.draw(st.integers(0, 2))
        skip = data.draw(st.integers(0, per_chunk - 1)) if chunks else 0
        count = chunks * per_chunk - skip
        cut = data.draw(st.integers(0, per_chunk - 1)) if chunks * per_chunk - skip else 0
        cut = min(cut, count - 1) if count else 0
        ids = [free[i % BLOCKS] for i in range(len(slots), len(slots) + count)]
        stored.append((ids, 5 * per_chunk + skip))
        loaded.append((ids[: count - cut], 5 * per_chunk + skip))
        slots += [order[len(slots) + i] * step for i in range(chunks)]
    ours, theirs = case.caches(1), case.caches(2)
    arena = arena_of(tmp_path_factory.mktemp("arena"), 6 * geometry.object_bytes)
    arenas = Arenas()
    arenas.add(arena)
    source = CpuWorker(ours, geometry, arenas, NoMembership())
    target = CpuWorker(theirs, geometry, arenas, NoMembership())
    before = [t.tensor.numpy().copy() for t in theirs.tensors]

    run(source, source.submit_store, spec(stored), ArenaSlots(slots, SERVER))
    run(target, target.submit_load, ArenaSlots(slots, SERVER), spec(loaded))

    for tensor, was in enumerate(before):
        expected = was
        for group, (ids, _) in zip(case.groups, loaded, strict=True):
            for used, width in group:
                if used == tensor:
                    expected[ids, :width] = ours.tensors[tensor].tensor.numpy()[ids, :width]
        assert (theirs.tensors[tensor].tensor.numpy() == expected).all()
    check_the_rest_is_clean(case, geometry, arena, slots)
    source.shutdown()
    target.shutdown()


def check_the_rest_is_clean(case: Case, geometry: Geometry, arena: Arena, slots: list[int]) -> None:
    """The shares of other ranks and other slots are as they were, and nothing of ours is."""
    last = geometry.rank == geometry.copies - 1
    end = geometry.object_bytes if last else geometry.offset + geometry.share
    for slot in range(0, 6 * geometry.object_bytes // 4096, geometry.object_bytes // 4096):
        place = arena.slot(slot, geometry.object_bytes).copy()
        if slot in slots:
            share = place[geometry.offset : end]
            padding = share[len(share) - case.padding :] if case.padding and not last else []
            assert not np.any(padding)
            place[geometry.offset : end] = DIRTY
        assert (place == DIRTY).all()


def test_a_store_leaves_nothing_of_what_was_in_its_slot(tmp_path: Path) -> None:
    case = Case(2, 2, 1, [100, 60], [[(0, 100)], [(0, 40), (1, 60)]], 0)
    geometry, arenas = case.geometry(), Arenas()
    arena = arena_of(tmp_path, geometry.object_bytes * 2)
    arenas.add(arena)
    caches = case.caches(3)
    for tensor in caches.tensors:
        tensor.tensor.fill_(7)
    worker = CpuWorker(caches, geometry, arenas, NoMembership())
    step = geometry.object_bytes // 4096

    blocks = spec([([1, 2], 0), ([5], 1)])
    run(worker, worker.submit_store, blocks, ArenaSlots([0, step], SERVER))

    share = arena.slot(0, geometry.object_bytes)[geometry.offset :]
    assert (share[:200] == 7).all() and not share[200:].any()
    share = arena.slot(step, geometry.object_bytes)[geometry.offset :]
    assert (share[100:140] == 7).all() and (share[260:320] == 7).all()
    assert share.sum() == 7 * 100
    assert (arena.slot(step, geometry.offset) == DIRTY).all(), "the other rank's"
    worker.shutdown()


@pytest.mark.parametrize(
    "blocks,slots",
    [
        (([1, 2], 0), [6]),
        (([1, 2], 0), [-1]),
        (([1, 2, 3], 0), [0]),
        (([1, 2], 0), [0, 1]),
        (([], 0), [0]),
    ],
)
def test_what_does_not_fit_is_not_copied(
    tmp_path: Path, blocks: tuple[list[int], int], slots: list[int]
) -> None:
    case = Case(2, 1, 0, [100], [[(0, 100)]], 0)
    geometry, arenas = case.geometry(), Arenas()
    arena = arena_of(tmp_path, 4096 * 6)
    arenas.add(arena)
    worker = CpuWorker(case.caches(3), geometry, arenas, NoMembership())

    with pytest.raises(ValueError):
        worker.submit_store(1, spec([blocks]), ArenaSlots(slots, SERVER))

    assert (arena.bytes == DIRTY).all()
    worker.shutdown()


@pytest.mark.parametrize("block", [BLOCKS, -1])
def test_a_block_that_is_not_there_is_no_other(tmp_path: Path, block: int) -> None:
    case = Case(2, 1, 0, [100], [[(0, 100)]], 0)
    geometry, arenas = case.geometry(), Arenas()
    arena = arena_of(tmp_path, 4096)
    arenas.add(arena)
    caches = case.caches(3)
    before = caches.tensors[0].tensor.clone()
    worker = CpuWorker(caches, geometry, arenas, NoMembership())

    blocks = spec([([1, block], 0)])
    worker.submit_store(1, blocks, ArenaSlots([0], SERVER))
    worker.submit_load(2, ArenaSlots([0], SERVER), blocks)
    worker.wait({1, 2})

    assert [result.success for result in worker.get_finished()] == [False, False]
    assert (arena.bytes[:200] == DIRTY).all()
    assert torch.equal(caches.tensors[0].tensor, before)
    worker.shutdown()


def test_a_job_that_fails_ends_with_its_last_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told that it has ended may use its blocks and slots again."""
    case = Case(1, 1, 0, [100], [[(0, 100)]], 0)
    arenas = Arenas()
    arenas.add(arena_of(tmp_path, 4096 * 2))
    worker = CpuWorker(case.caches(3), case.geometry(), arenas, NoMembership())
    copying, go_on = threading.Event(), threading.Event()

    def store(part: Part, place: Any) -> int:
        if part.slot == 0:
            raise RuntimeError("no")
        copying.set()
        return int(go_on.wait(60))

    monkeypatch.setattr(worker, "_store", store)
    worker.submit_store(1, spec([([1, 2], 0)]), ArenaSlots([0, 1], SERVER))
    assert copying.wait(60)
    for _ in range(20):
        assert worker.get_finished() == []
        time.sleep(0.01)
    worker.submit_load(2, ArenaSlots([0], SERVER), spec([([3], 0)]), expedited=True)
    assert [(result.job_id, result.success) for result in worker.get_finished()] == [(2, True)]
    go_on.set()
    worker.wait({1})
    assert [(result.job_id, result.success) for result in worker.get_finished()] == [(1, False)]
    worker.shutdown()


def test_tensors_that_do_not_fit_are_refused() -> None:
    case = Case(2, 1, 0, [100], [[(0, 100)]], 0)
    with pytest.raises(ValueError, match="200 bytes a chunk, and vLLM announces 199"):
        CpuWorker(case.caches(1), Geometry(2, 199, 1, 0), Arenas(), NoMembership())


def test_an_arena_lives_as_long_as_its_jobs(tmp_path: Path) -> None:
    arenas = Arenas()
    for number in range(3):
        arenas.add(arena_of(tmp_path, 4096, f"a{number}", bytes([number]) * 16))
    old = arenas.of(bytes(16))
    old.bytes[0] = 1

    arenas.of(b"\2" * 16)

    for gone in (0, 1):
        with pytest.raises(UnknownArena):
            arenas.of(bytes([gone]) * 16)
    assert old.bytes[0] == 1
    assert mapped(tmp_path) == {"a0", "a1", "a2"}, "that takes a while, and is another thread's"
    arenas.let_go()
    assert mapped(tmp_path) == {"a0", "a2"}
    del old
    assert mapped(tmp_path) == {"a2"}


class Silence:
    """A connection to a sidecar that answers nothing."""

    def send(self, frames: object) -> bool:
        return True

    def receive(self) -> None:
        """Nothing has come."""

    def ended(self) -> bool:
        return False

    def wait(self, milliseconds: int) -> None:
        time.sleep(0.01)

    def close(self) -> None:
        """There is nothing to close."""


def test_the_membership_lets_go_of_arenas_that_are_over(tmp_path: Path) -> None:
    arenas = Arenas()
    for number in range(2):
        arenas.add(arena_of(tmp_path, 4096, f"a{number}", bytes([number]) * 16))
    join = wire.Join(
        engine="e", incarnation=bytes(16), rank=0, ranks=1, object_bytes=4096, layout=bytes(32)
    )
    membership = Membership(join, arenas, Silence)
    membership.start()
    assert arenas.of(b"\1" * 16)
    wait_until(lambda: mapped(tmp_path) == {"a1"}, "the old one is unmapped")
    membership.stop()


def mapped(folder: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[-1]).name for line in lines if str(folder) in line}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "no-such"])
def test_only_a_segment_is_mapped(tmp_path: Path, name: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)):
        Arena(SERVER, name, 4096, tmp_path)


def test_a_segment_that_is_too_short_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(4096))
    with pytest.raises(ValueError, match="shorter"):
        Arena(SERVER, "short", 8192, tmp_path)
    os.symlink(tmp_path / "short", tmp_path / "link")
    with pytest.raises(OSError):
        Arena(SERVER, "link", 4096, tmp_path)


def test_a_copy_that_fails_is_told_and_ends_no_other() -> None:
    copier = Copier()

    def broken() -> int:
        raise RuntimeError("no")

    copier.submit(1, broken)
    copier.submit(2, lambda: 5)
    copier.wait({1, 2, 99})
    assert {done.job: done.moved for done in copier.take_done()} == {1: None, 2: 5}
    copier.stop()


def test_an_expedited_copy_waits_for_no_other() -> None:
    copier, go_on = Copier(), threading.Event()
    copier.submit(1, lambda: int(go_on.wait(60)))

    copier.run_now(2, lambda: 7)

    assert [(done.job, done.moved) for done in copier.take_done()] == [(2, 7)]
    go_on.set()
    copier.wait({1})
    copier.stop()


# ------------------------------------------------------------------ on a GPU

READ_BY_VLLM = {
    *("_base", "_row_stride", "cleanup", "cpu_page_size", "create_next_worker_view", "is_pinned"),
    *("page_size", "pinned_addresses", "rank", "total_size_bytes"),
}


@dataclass
class Recorder:
    """In the place of vLLM's worker, which asks for tensors on a GPU: keeps what it is given."""

    region: ArenaRegion
    rows: list[torch.Tensor]
    done: list[Any]
    ended: bool = False

    def submit_store(self, job: int, source: Any, target: Any) -> bool:
        return True

    def submit_load(self, job: int, source: Any, target: Any, expedited: bool = False) -> bool:
        return True

    def get_finished(self) -> list[Any]:
        done, self.done = self.done, []
        return done

    def wait(self, jobs: set[int]) -> None:
        assert not jobs or jobs == {1}

    def shutdown(self) -> None:
        """As vLLM's: it lets go of its views, and of the region."""
        self.ended = True
        self.rows.clear()
        self.region.cleanup()


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    made: list[Recorder] = []
    real = inspect.signature(vllm_worker.CPUOffloadingWorker)

    def make(**given: Any) -> Recorder:
        bound = real.bind(**given).arguments
        region, caches = bound["mmap_region"], bound["kv_caches"]
        per_chunk = bound["blocks_per_chunk"]
        rows = [
            region.create_next_worker_view(t.page_size_bytes * per_chunk) for t in caches.tensors
        ]
        made.append(Recorder(region, rows, []))
        return made[-1]

    monkeypatch.setattr(vllm_worker, "CPUOffloadingWorker", make)
    yield made


def test_vllms_worker_addresses_a_slot_by_its_number(
    tmp_path: Path, recorders: list[Recorder]
) -> None:
    case = Case(2, 2, 1, [100, 60], [[(0, 100), (1, 60)]], 0)
    geometry, arenas = case.geometry(), Arenas()
    arena = arena_of(tmp_path, 10 * 4096)
    arenas.add(arena)
    worker = GpuWorker(case.caches(1), geometry, arenas, NoMembership())
    assert worker.submit_store(1, spec([([1, 2, 3, 4], 0)]), ArenaSlots([3, 9], SERVER))

    [made] = recorders
    assert {name for name in READ_BY_VLLM if hasattr(made.region, name)} == READ_BY_VLLM
    base = arena.bytes.ctypes.data
    for rows, offset, page in zip(made.rows, (0, 200), (100, 60), strict=True):
        pointers = np.empty(3, np.uint64)
        # From the second block of slot 3 on.
        vllm_worker.compute_sub_block_ptrs(
            np.array([3, 9], np.int32), 2, pointers, rows, skip_count=1
        )
        begin = base + geometry.offset + offset
        assert pointers.tolist() == [
            begin + 3 * 4096 + page, begin + 9 * 4096, begin + 9 * 4096 + page
        ]  # fmt: skip
        assert rows.shape == (10, 2 * page) and rows.dtype == torch.int8
    with pytest.raises(ValueError):
        worker.submit_load(2, ArenaSlots([10], SERVER), spec([([1, 2], 0)]))
    worker.shutdown()


def test_vllm_pins_nothing_of_its_own(tmp_path: Path) -> None:
    case = Case(1, 1, 0, [64], [[(0, 64)]], 0)
    for pinned in (False, True):
        arena = arena_of(tmp_path, 4096)
        arena.pinned = pinned
        region = ArenaRegion(arena, case.geometry())
        vllm_worker.pin_mmap_region(region)
        assert region.is_pinned == pinned and region.pinned_addresses == []


def test_a_new_sidecar_gets_a_worker_of_its_own(tmp_path: Path, recorders: list[Recorder]) -> None:
    case = Case(1, 1, 0, [64], [[(0, 64)]], 0)
    arenas = Arenas()
    worker = GpuWorker(case.caches(1), case.geometry(), arenas, NoMembership())
    arenas.add(arena_of(tmp_path, 4096, "a", b"a" * 16))
    worker.submit_store(1, spec([([1], 0)]), ArenaSlots([0], b"a" * 16))
    arenas.add(arena_of(tmp_path, 4096, "b", b"b" * 16))
    worker.submit_load(2, ArenaSlots([0], b"b" * 16), spec([([1], 0)]))

    first, second = recorders
    worker.wait({1})
    assert worker.get_finished() == [] and not first.ended
    first.done.append(type("Result", (), {"job_id": 1})())
    assert len(worker.get_finished()) == 1
    assert first.ended and not second.ended
    assert mapped(tmp_path) == {"a", "b"}
    arenas.let_go()
    assert mapped(tmp_path) == {"b"}
    worker.shutdown()
    assert second.ended


def no_check() -> None:
    """It is of use."""


def test_what_is_not_resident_yet_is_not_pinned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that a worker makes count as its own container's memory, not as the sidecar's."""
    monkeypatch.setattr(pinning, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    name, there = f"kvtest_pinning_{os.getpid()}", [False] * 3
    fd = os.open(SHM / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.ftruncate(fd, len(there) * PIECE)
        arena = Arena(SERVER, name, len(there) * PIECE)
    finally:
        (SHM / name).unlink()

    def make_next() -> None:
        """The sidecar's turn, while the worker waits."""
        piece = there.index(False)
        os.posix_fallocate(fd, piece * PIECE, PIECE)
        os.pwrite(fd, bytes(PIECE), piece * PIECE)
        there[piece] = True

    def register(address: int, size: int) -> bool:
        assert there[(address - arena.bytes.ctypes.data) // PIECE]
        return True

    pinning.pin(arena, "cuda:0", register, lambda address: None, make_next)
    assert arena.pinned and all(there)
    os.close(fd)


def test_the_wait_for_pages_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the connection, and in any case after a time: what is not pinned is slower."""
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    monkeypatch.setattr(Arena, "is_resident", lambda *_: False)

    def ended() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pinning.pin(arena_of(tmp_path, 4096), "cuda:0", lambda *_: True, lambda _: None, ended)
    monkeypatch.setattr(pinning, "RESIDENT_SECONDS", 0.0)
    arena = arena_of(tmp_path, 4096)
    pinning.pin(arena, "cuda:0", lambda *_: True, lambda _: None, no_check)
    assert not arena.pinned


def test_an_arena_is_pinned_in_pieces_and_let_go_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "PIECE_BYTES", 4096)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    held: dict[int, int] = {}

    def register(address: int, size: int) -> bool:
        held[address] = size
        return len(held) < limit

    limit = 99
    arena = arena_of(tmp_path, 3 * 4096)
    pinning.pin(arena, "cuda:0", register, held.pop, no_check)
    assert arena.pinned and sum(held.values()) == len(arena.bytes)
    del arena
    wait_until(lambda: not held, "all is let go")

    limit = 2
    arena = arena_of(tmp_path, 3 * 4096)
    pinning.pin(arena, "cuda:0", register, held.pop, no_check)
    assert not arena.pinned
    assert len(held) == 1, "only what the driver refused"
