"""The parts of a GPU's process over the fake driver: mappings, events, pinning, turns."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda import shares as shares_module
from sidecar.engines.cuda.driver import Addresses, DriverError
from sidecar.engines.cuda.events import BadEvent, open_event
from sidecar.engines.cuda.lane import Lane, Transfer
from sidecar.engines.cuda.mappings import HandleInUse, Mappings
from sidecar.engines.cuda.pinning import PinnedArena
from sidecar.engines.cuda.plan import Runs, Step
from sidecar.engines.cuda.shares import release
from tests.support.fake_gpu import PREFIX, FakeDriver
from tests.support.gpu_worker import DeviceMemory, Event, Timeline
from tests.support.server import SHM
from tests.support.turns import ended

KIB = 1024
WORKER = 1


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    yield FakeDriver()
    for left in SHM.glob(f"{PREFIX}{os.getpid()}_*"):
        left.unlink()


@pytest.fixture
def memory() -> mmap.mmap:
    """Host memory of two pieces and a bit."""
    return mmap.mmap(-1, 2 * PIECE_BYTES + 8192)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_an_allocation_is_mapped_once_and_until_its_last_use(driver: FakeDriver) -> None:
    mappings, shared = Mappings(driver), DeviceMemory(4096)
    uses = [mappings.acquire(shared.handle, WORKER) for _ in range(3)]
    assert len(set(uses)) == 1
    assert driver.calls["map_memory"] == 1
    mappings.release(shared.handle)
    mappings.release(shared.handle)
    assert driver.calls["unmap_memory"] == 0
    mappings.release(shared.handle)
    assert driver.calls["unmap_memory"] == 1
    mappings.acquire(shared.handle, WORKER)
    assert driver.calls["map_memory"] == 2


def test_memory_that_cannot_be_mapped_is_not_counted(driver: FakeDriver) -> None:
    mappings, shared = Mappings(driver), DeviceMemory(4096)
    with pytest.raises(DriverError):
        mappings.acquire(bytes(64), WORKER)
    assert mappings.acquire(shared.handle, WORKER)[1] == 4096


def test_a_handle_that_is_mapped_for_another_worker_is_not_mapped_again(
    driver: FakeDriver,
) -> None:
    """The driver would give the memory of whoever sent these bytes first."""
    mappings, shared = Mappings(driver), DeviceMemory(4096)
    mappings.acquire(shared.handle, WORKER)
    assert mappings.are_free([shared.handle], WORKER)
    assert not mappings.are_free([bytes(64), shared.handle], WORKER + 1)
    with pytest.raises(HandleInUse):
        mappings.acquire(shared.handle, WORKER + 1)
    mappings.release(shared.handle)
    mappings.acquire(shared.handle, WORKER + 1)
    assert driver.calls["map_memory"] == 2


@pytest.mark.parametrize("name", ["/../etc/passwd", "/torch_1/../x", "torch_1", "", "/torch_gone"])
def test_a_counter_of_another_name_is_not_touched(name: str) -> None:
    release([(name, 0)])


def test_a_counter_goes_down_once_and_never_below_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares_module, "SHM_DIR", tmp_path)
    file, other = tmp_path / "torch_12_ab", tmp_path / "torch_12_cd"
    file.write_bytes(np.array([1, 1, 7], np.int64).tobytes())
    other.write_bytes(np.array([1, 1], np.int64).tobytes())
    for _ in range(2):
        release([("/torch_12_ab", 1), ("/torch_12_cd", 0), ("/torch_gone", 0)])
    release([("/torch_12_ab", 2)])  # no share of ours: a tensor's file has such a name, too
    release([("/torch_12_ab", 99)])
    assert np.frombuffer(file.read_bytes(), np.int64).tolist() == [1, 0, 7]
    assert np.frombuffer(other.read_bytes(), np.int64).tolist() == [0, 1]


def test_an_ipc_event(driver: FakeDriver) -> None:
    theirs = Event()
    event = open_event(theirs.handle, driver, Mappings(driver), WORKER)
    assert not event.is_done()
    theirs.signal()
    assert event.is_done()
    event.close()


@pytest.mark.parametrize(
    ("word", "value", "done"),
    [(0, 1, False), (6, 7, False), (7, 7, True), (9, 7, True), (2**64 - 1, 1, False)],
)
def test_a_timeline_event_is_reached_or_passed(
    driver: FakeDriver, word: int, value: int, done: bool
) -> None:
    mappings, timeline = Mappings(driver), Timeline(4096)
    timeline.write(word)
    event = open_event(timeline.event(value), driver, mappings, WORKER)
    assert event.is_done() is done
    event.close()
    assert driver.calls["unmap_memory"] == 1


def test_a_timeline_event_that_was_never_recorded_is_done(driver: FakeDriver) -> None:
    """It names no memory."""
    event = open_event(b"\1" + bytes(80), driver, Mappings(driver), WORKER)
    assert event.is_done()
    event.close()
    assert driver.calls["map_memory"] == 0


def test_timeline_words_are_lmcache_s_where_the_driver_tells_no_size(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, timeline = driver.map_memory, Timeline(1 << 20)
    monkeypatch.setattr(driver, "map_memory", lambda handle: (real(handle)[0], None))
    mappings = Mappings(driver)
    open_event(timeline.event(1, slot=4095), driver, mappings, WORKER).close()
    with pytest.raises(BadEvent):
        open_event(timeline.event(1, slot=4096), driver, mappings, WORKER)
    assert driver.calls["map_memory"] == driver.calls["unmap_memory"]


def test_what_is_no_event_leaves_nothing_mapped(driver: FakeDriver) -> None:
    mappings, timeline = Mappings(driver), Timeline(4096)
    good = timeline.event(1)
    outside = timeline.event(1, slot=512), timeline.event(1, slot=1 << 60)
    unknown = b"\2" + good[1:], b"\2" + bytes(80)
    for bad in (b"", good[:-1], *unknown, *outside):
        with pytest.raises(BadEvent):
            open_event(bad, driver, mappings, WORKER)
    assert driver.calls["map_memory"] == driver.calls["unmap_memory"]


def test_pinning_goes_on_in_pieces_as_far_as_memory_is_resident(
    driver: FakeDriver, memory: mmap.mmap
) -> None:
    arena = PinnedArena(driver, address_of(memory), len(memory), clock=lambda: 0.0)
    assert arena.advance() is None
    arena.populated([0])
    assert arena.advance() is not None
    assert arena.advance() is None
    assert arena.pinned_bytes == PIECE_BYTES
    assert arena.need(np.array([2 * PIECE_BYTES])), "a copy does not wait for its turn"
    arena.populated([1, 2])
    assert arena.advance() is not None
    assert arena.advance() is None
    assert arena.pinned_bytes == len(memory)


def test_pinning_leaves_the_driver_to_others_for_most_of_the_time(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for pieces that a copy needs."""
    now, pinned = [0.0], list[int]()

    def pin(address: int, nbytes: int) -> int:
        now[0] += 0.01
        pinned.append(address // PIECE_BYTES)
        return address

    monkeypatch.setattr(driver, "pin", pin)
    arena = PinnedArena(driver, 0, 8 * PIECE_BYTES, clock=lambda: now[0])
    arena.populated(range(8))
    while (rest := arena.advance()) is not None:
        assert rest == pytest.approx(0.03), "three times as long as a piece takes"
        count = len(pinned)
        now[0] += rest / 2
        assert arena.advance() == pytest.approx(rest / 2)
        assert len(pinned) == count, "an order that comes in the pause does not end it"
        if count == 1:
            assert arena.need(np.array([5 * PIECE_BYTES]))
        now[0] += rest
    assert sorted(pinned) == list(range(8))


def test_the_part_near_the_gpu_is_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, order, base = FakeDriver(), [], 1 << 40

    def pin(address: int, nbytes: int) -> int:
        order.append((address - base) // PIECE_BYTES)
        return address

    monkeypatch.setattr(driver, "pin", pin)
    near = range(2 * PIECE_BYTES, 4 * PIECE_BYTES)
    arena = PinnedArena(driver, base, 6 * PIECE_BYTES, near, clock=lambda: 0.0)
    arena.populated([0, 2, 4, 1, 3])
    arena.advance()
    assert arena.need(np.array([4 * PIECE_BYTES])), "a copy does not wait, far as it may be"
    while arena.advance() is not None:
        pass
    arena.populated([5])
    while arena.advance() is not None:
        pass
    assert order == [2, 4, 3, 0, 1, 5]


class Copies:
    """Lanes over one device allocation, and transfers of one portion of 1 KiB after another."""

    def __init__(self, driver: FakeDriver, memory: mmap.mmap) -> None:
        self.arena = PinnedArena(driver, address_of(memory), len(memory))
        self.device = driver.allocate(64 * KIB)
        self.lane = Lane(driver, self.arena, is_store=True)

    def transfer(self, job: int, steps: int, worker: int = 1) -> Transfer:
        one = Runs(np.array([self.device]), np.array([job * KIB]), np.array([KIB]))
        return Transfer(job, worker, 0.0, iter([Step(one, False)] * steps))


def test_short_transfers_do_not_wait_for_a_long_one(driver: FakeDriver, memory: mmap.mmap) -> None:
    copies = Copies(driver, memory)
    for job, steps in ((0, 50), (1, 1), (2, 3)):
        copies.lane.add(copies.transfer(job, steps))
    assert ended(copies.lane, 3) == [1, 2, 0]
    assert copies.lane.is_idle


def test_portions_that_are_on_their_way_do_not_wait_for_each_other(
    driver: FakeDriver, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a stream of its own."""
    copies, streams, real = Copies(driver, memory), list[int](), driver.copy

    def copy(to: Addresses, source: Addresses, sizes: Addresses, stream: int, batch: bool) -> None:
        streams.append(stream)
        real(to, source, sizes, stream, batch)

    monkeypatch.setattr(driver, "copy", copy)
    copies.lane.add(copies.transfer(0, 4))
    copies.lane.advance()
    assert len(streams) == len(set(streams)) == 4
    assert ended(copies.lane, 1) == [0]


def test_a_worker_that_has_left_gets_no_further_portion(
    driver: FakeDriver, memory: mmap.mmap
) -> None:
    copies = Copies(driver, memory)
    copies.lane.add(copies.transfer(0, 50, worker=1))
    copies.lane.add(copies.transfer(1, 2, worker=2))
    copies.lane.advance()
    begun = driver.calls["copy"]
    at_once = copies.lane.drop(1)
    jobs = [transfer.job for transfer in at_once] + ended(copies.lane, 2 - len(at_once))
    assert sorted(jobs) == [0, 1]
    assert driver.calls["copy"] - begun <= 2, "those of the other worker"
    assert copies.lane.is_idle
