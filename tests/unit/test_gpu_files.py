"""Objects on their way from files to blocks, over the fake driver and a reader with faults."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.engines.cuda import file_lane, file_mover, object_buffers
from sidecar.engines.cuda import lane as lane_module
from sidecar.engines.cuda.driver import OUT_OF_MEMORY, DriverError
from sidecar.engines.cuda.file_lane import file_lanes
from sidecar.engines.cuda.file_mover import CannotMove, FileMover
from sidecar.engines.cuda.lane import Stuck, Transfer
from sidecar.engines.cuda.mapped_worker import MappedWorker, ObjectRuns
from sidecar.engines.cuda.mappings import Mappings
from sidecar.engines.cuda.plan import STEP_RUNS
from tests.support.fake_files import FakeMover
from tests.support.fake_gpu import ILLEGAL, PREFIX, FakeDriver
from tests.support.gpu_child import PAGE, Blocks, by_block, stored
from tests.support.server import SHM, wait_until
from tests.support.turns import ended


class Site:
    """A lane, its reader, and a worker whose block n is for the n-th object."""

    def __init__(self, folder: Path, driver: FakeDriver, run: int = 512) -> None:
        self.driver, self._folder = driver, folder
        self.mover: Any = FakeMover("GDS", {})
        self.lanes = file_lanes(driver, self.mover)
        self.lane = self.lanes[False]
        self.blocks = Blocks(1, run=run)
        self._worker = MappedWorker(self.blocks.map_order(), Mappings(driver))
        self._next = 0
        self.contents: dict[str, dict[int, np.ndarray]] = {}

    def transfer(self, job: int, *names: str, worker: int = 1) -> Transfer[ObjectRuns]:
        objects, ids = [], []
        for name in names:
            block = self._next = self._next + 1
            made, data = stored(self._folder / name, self.blocks.object_bytes(1), seed=block)
            self.contents[name] = by_block(self.blocks, [block], data)
            objects.append(made)
            ids.append([block])
        wanted = self._worker.objects(self.blocks.move_files(job, objects, ids))
        return Transfer(job, worker, 0.0, wanted)

    def run(self, *transfers: Transfer[ObjectRuns]) -> list[int]:
        """The jobs in the order in which they end."""
        for transfer in transfers:
            self.lane.add(transfer)
        return ended(self.lane, len(transfers))

    def expect(self, *names: str) -> None:
        """The objects of these names are in their blocks, and nothing else."""
        self.blocks.expect({k: v for name in names for k, v in self.contents[name].items()})

    @property
    def buffer_bytes(self) -> int:
        return sum(self.mover.registered.values())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    yield lambda driver=None, **more: Site(tmp_path, driver or FakeDriver(), **more)
    for left in SHM.glob(f"{PREFIX}{os.getpid()}_*"):
        left.unlink()


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on the drivers made after this fixture misbehave like this."""
    path = tmp_path / "faults.json"
    monkeypatch.setenv("FAKE_GPU_FAULTS", str(path))
    return lambda *faults: path.write_text(json.dumps(faults)) and None


TABLE_BYTES = 3 * STEP_RUNS * 8


class SmallGpu(FakeDriver):
    """`room` bytes can be allocated beside those of tables."""

    room = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.lent: dict[int, int] = {}

    def allocate(self, nbytes: int) -> int:
        if nbytes != TABLE_BYTES and nbytes > self.room - sum(self.lent.values()):
            raise DriverError("allocate", OUT_OF_MEMORY)
        address = super().allocate(nbytes)
        if nbytes != TABLE_BYTES:
            self.lent[address] = nbytes
        return address

    def free(self, address: int) -> None:
        super().free(address)
        del self.lent[address]


def test_short_transfers_do_not_wait_for_a_long_one(site: Callable[..., Site]) -> None:
    made = site()
    names = [f"long{n}" for n in range(24)]
    long, short = made.transfer(0, *names), made.transfer(1, "short")
    middle = made.transfer(2, "a", "b", "c")
    assert made.run(long, short, middle) == [1, 2, 0]
    assert made.lane.is_idle and not long.error
    made.expect(*names, "short", "a", "b", "c")
    assert len(made.mover.registered) <= 4 + 1  # the first is for trying out


def test_the_others_of_a_transfer_are_waited_for(site: Callable[..., Site]) -> None:
    """Those that are read are not written any more, for the request has failed."""
    made = site()
    bad = made.transfer(1, "wrong", *[f"slow{n}" for n in range(6)])
    good = made.transfer(2, "good")
    assert made.run(bad, good) == [2, 1]
    assert bad.error is not None and bad.error.endswith("wrong: not the bytes that were stored")
    assert made.lane.is_idle and made.mover.failed is None
    assert len(made.mover.begun) <= 4
    made.expect("good")


def test_after_a_failed_read_its_memory_is_not_used_again(site: Callable[..., Site]) -> None:
    made = site()
    failing, after = made.transfer(1, "fails", "slow"), made.transfer(2, "x")
    made.lane.add(failing)
    assert ended(made.lane, 1) == [1]
    assert failing.error == made.mover.failed == "fails: the disk is broken"
    buffers = dict(made.mover.registered)
    assert made.run(after) == [2]
    assert after.error == failing.error
    assert made.mover.registered == buffers, "nothing is freed, nothing is new"
    made.expect()


def test_who_waits_for_the_memory_of_a_failed_read_fails(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_buffers, "_MOST_BYTES", PAGE)
    made = site(run=PAGE)
    assert made.run(made.transfer(1, "fails"), made.transfer(2, "waits")) == [1, 2]
    assert made.lane.is_idle
    made.expect()


def test_a_read_that_does_not_end_costs_the_process(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "STEP_SECONDS", 0.1)
    made = site()
    made.lane.add(made.transfer(1, "hangs"))
    with pytest.raises(Stuck, match="a read from a file did not end"):
        ended(made.lane, 1)


def test_nothing_is_written_for_a_worker_that_has_left(site: Callable[..., Site]) -> None:
    made = site()
    left, stays = made.transfer(1, *[f"slow{n}" for n in range(6)]), made.transfer(2, "b", worker=2)
    made.lane.add(left)
    made.lane.add(stays)
    made.lane.advance()
    assert made.lane.drop(1) == [], "four of its objects are still being read"
    assert sorted(ended(made.lane, 2)) == [1, 2]
    assert left.error == "the worker has left" and not stays.error
    assert made.lane.is_idle and len(made.mover.begun) <= 4 + 1
    made.expect("b")


def test_a_worker_whose_transfer_has_not_begun_leaves_at_once(site: Callable[..., Site]) -> None:
    made = site()
    waiting = made.transfer(1, "a")
    made.lane.add(waiting)
    assert made.lane.drop(1) == [waiting]
    assert made.lane.is_idle


@pytest.mark.parametrize("call", ["sum_objects", "copy_runs"])
def test_a_harmless_error_of_the_driver_is_the_transfer_s(
    site: Callable[..., Site], fail: Callable[..., None], call: str
) -> None:
    made = site()
    fail({"call": call, "nth": 1, "code": 1})
    bad, good = made.transfer(1, "a"), made.transfer(2, "b")
    assert made.run(bad) == [1]
    assert bad.error is not None and call in bad.error
    assert made.run(good) == [2] and good.error is None
    made.expect("b")


@pytest.mark.parametrize("call", ["sum_objects", "copy_runs", "allocate"])
def test_a_fatal_error_of_the_driver_costs_the_process(
    site: Callable[..., Site], fail: Callable[..., None], call: str
) -> None:
    made = site(run=PAGE)
    fail({"call": call, "nth": 1, "code": ILLEGAL})
    made.lane.add(made.transfer(1, "a"))
    with pytest.raises(DriverError):
        ended(made.lane, 1)
    made.expect()


def test_with_little_memory_fewer_objects_are_on_their_way(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is more: after a while the GPU is asked again."""
    driver = SmallGpu()
    made = site(driver, run=PAGE)
    driver.room = PAGE + 2 * made.blocks.object_bytes(1)
    whole = made.transfer(1, *"abcdefgh")
    assert made.run(whole) == [1] and whole.error is None
    made.expect(*"abcdefgh")
    assert made.buffer_bytes == 2 * made.blocks.object_bytes(1)
    driver.room = 1 << 30
    assert made.run(made.transfer(2, "i", "j", "k", "l")) == [2]
    assert made.buffer_bytes == 2 * made.blocks.object_bytes(1)
    monkeypatch.setattr(object_buffers, "_AGAIN_SECONDS", 0.0)
    assert made.run(made.transfer(3, "m", "n", "o", "p")) == [3]
    assert made.buffer_bytes > 2 * made.blocks.object_bytes(1)


def test_without_memory_the_transfer_fails_and_nothing_else(site: Callable[..., Site]) -> None:
    driver = SmallGpu()
    made = site(driver, run=PAGE)
    driver.room = PAGE
    without = made.transfer(1, "a", "b")
    assert made.run(without) == [1]
    assert without.error is not None and "(2)" in without.error
    driver.room = 1 << 30
    good = made.transfer(2, "c")
    assert made.run(good) == [2] and good.error is None
    made.expect("c")


def test_buffers_make_room_for_larger_objects(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_buffers, "_MOST_BYTES", 8 * PAGE)
    driver = FakeDriver()
    mover: Any = FakeMover("GDS", {})
    buffers = object_buffers.ObjectBuffers(driver, mover)

    def take(nbytes: int) -> Any:
        return buffers._take(nbytes)

    small = [take(PAGE) for _ in range(8)]
    assert take(1) is None and sum(mover.registered.values()) == 8 * PAGE
    for buffer in small[:7]:
        buffers.give_back(buffer)
    larger = take(3 * PAGE - 1)
    assert larger.size == 3 * PAGE and sum(mover.registered.values()) <= 8 * PAGE
    assert take(20 * PAGE) is None, "it must be the only one"
    buffers.give_back(larger)
    assert take(20 * PAGE) is None
    buffers.give_back(small[7])
    huge = take(20 * PAGE)
    assert list(mover.registered.values()) == [20 * PAGE] and driver.calls["free"]
    buffers.give_back(huge)


def test_a_reader_without_nixl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(CannotMove, match=r"install kv-sidecar\[nixl\]"):
        FileMover("GDS", {})


def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def without_direct(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return open_file(path, flags)

    monkeypatch.setattr(os, "open", without_direct)
    (tmp_path / "file").write_bytes(b"bytes")
    with os.fdopen(file_mover._open(str(tmp_path / "file"), False), "rb") as file:
        assert file.read() == b"bytes"
    with pytest.raises(FileNotFoundError):
        file_mover._open(str(tmp_path / "gone"), False)


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """A FIFO is not waited for: all transfers of the GPU would wait, too."""
    path = tmp_path / "0.kv"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        (tmp_path / "1.kv").write_bytes(bytes(8192))
        path.symlink_to(tmp_path / "1.kv")
    mover = object.__new__(FileMover)
    mover.failed = None
    with pytest.raises(CannotMove):
        mover.begin(str(path), 4096, 4096, 0, is_store=False)


def test_memory_that_cannot_be_registered_is_told_at_once() -> None:
    driver, mover = FakeDriver(), FakeMover("lost", {})
    with pytest.raises(CannotMove, match="cannot be registered"):
        file_lanes(driver, mover)  # type: ignore[arg-type]
    assert driver.calls["free"] == 1


def test_what_a_worker_that_has_left_was_to_get_is_not_written(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the rest of an object of which a kernel has written a part, either."""
    monkeypatch.setattr(file_lane, "STEP_RUNS", 1)
    made = site()
    transfer = made.transfer(1, "a")
    made.lane.add(transfer)

    def half_written() -> bool:
        made.lane.advance()
        return made.driver.calls["copy_runs"] == 1

    wait_until(half_written, "a part is written")
    made.lane.drop(1)
    assert ended(made.lane, 1) == [1] and transfer.error == "the worker has left"
    assert not transfer.file_failed
    assert made.driver.calls["copy_runs"] == 1


def test_a_buffer_that_cannot_be_given_back_ends_the_waiting(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = site()
    monkeypatch.setattr(object_buffers, "_MOST_BYTES", 0)
    buffers = object_buffers.ObjectBuffers(made.driver, made.mover)

    def refuse(memory: int) -> None:
        raise CannotMove("it is not known")

    monkeypatch.setattr(made.mover, "deregister", refuse)
    for _ in range(2):
        with pytest.raises(CannotMove, match="it is not known"):
            list(buffers.wait(2 * PAGE))
