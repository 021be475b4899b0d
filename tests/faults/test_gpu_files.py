"""A GPU's child that reads files, alone over a pipe: open, fail, hang, leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.engines.cuda import protocol
from sidecar.engines.cuda.process import FAILED
from sidecar.engines.cuda.protocol import FilesOpened, Mapped, Moved, OpenFiles, Ping, Pong, Unmap
from tests.support.gpu_child import Blocks, GpuChild, by_block, stored
from tests.support.gpu_worker import Event
from tests.support.server import wait_until

SECONDS = 0.5  # all deadlines of the child


@pytest.fixture
def child(tmp_path: Path) -> Iterator[GpuChild]:
    environment = {"FAKE_GPU_SECONDS": str(SECONDS)}
    made = GpuChild("tests.support.fake_gpu", environment, log=tmp_path / "log")
    yield made
    made.close()


@pytest.fixture
def blocks(child: GpuChild) -> Iterator[Blocks]:
    with Blocks(1) as made:
        child.tell(made.map_order())
        assert child.answer(Mapped) == Mapped(1, None)
        yield made


def open_files(child: GpuChild, backend: str = "GDS") -> str | None:
    child.tell(OpenFiles(backend, {}))
    return child.answer(FilesOpened).error


@pytest.mark.parametrize("backend", ["none", "lost", None])
def test_without_files_a_fetch_is_an_error_and_copies_go_on(
    child: GpuChild, blocks: Blocks, tmp_path: Path, backend: str | None
) -> None:
    error = open_files(child, backend) if backend else "files have not been opened"
    assert error is not None
    one, _ = stored(tmp_path / "one", blocks.object_bytes(1))
    child.tell(blocks.move_files(1, [one], [[1]]))
    assert child.answer(Moved).error == error
    child.tell(protocol.Move(2, 1, True, blocks.event, [0], [bytes(8)], [None]))
    assert child.answer(Moved).error is None
    blocks.expect({})


def test_a_fetch_comes_after_the_worker_s_event(
    child: GpuChild, blocks: Blocks, tmp_path: Path
) -> None:
    assert open_files(child) is None
    one, data = stored(tmp_path / "one", blocks.object_bytes(1))
    event, late = Event(), Event()
    child.tell(blocks.move_files(1, [one], [[1]], event=event.handle))
    child.tell(Ping())
    child.answer(Pong)
    blocks.expect({})
    event.signal()
    assert child.answer(Moved).error is None
    blocks.expect(by_block(blocks, [1], data))
    child.tell(blocks.move_files(2, [one], [[2]], event=late.handle))
    assert "the event did not happen" in str(child.answer(Moved).error)
    blocks.expect(by_block(blocks, [1], data))
    for made in (event, late):
        made.unlink()


def test_a_worker_leaves_while_its_objects_are_read(
    child: GpuChild, blocks: Blocks, tmp_path: Path
) -> None:
    """Its blocks stay mapped until then, and are not written."""
    assert open_files(child) is None
    slow = [stored(tmp_path / f"slow{n}", blocks.object_bytes(1))[0] for n in range(6)]
    child.tell(blocks.move_files(1, slow, [[n] for n in range(6)]))
    child.tell(Unmap(1))
    assert child.answer(Moved).error == "the worker has left"
    maps = Path(f"/proc/{child.process.pid}/maps")
    wait_until(lambda: blocks.name not in maps.read_text(), "it is unmapped")
    blocks.expect({})
    child.tell(protocol.End())
    assert child.process.wait(10) == 0


def test_a_read_that_does_not_end_ends_the_process(
    child: GpuChild, blocks: Blocks, tmp_path: Path
) -> None:
    assert open_files(child) is None
    hangs, _ = stored(tmp_path / "hangs", blocks.object_bytes(1))
    child.tell(blocks.move_files(1, [hangs], [[1]]))
    with pytest.raises(EOFError):
        child.answer(Moved)
    assert child.process.wait(10) == FAILED
    log = (tmp_path / "log").read_text()
    assert "the GPU is given up: a read from a file did not end" in log and "Trace" not in log


def test_after_a_failed_read_files_are_closed(
    child: GpuChild, blocks: Blocks, tmp_path: Path
) -> None:
    """The server is told; what is on its way already ends well."""
    assert open_files(child) is None
    size = blocks.object_bytes(1)
    fails, _ = stored(tmp_path / "fails", size)
    slow, data = stored(tmp_path / "slow", size, seed=1)
    child.tell(blocks.move_files(1, [slow], [[2]]))
    child.tell(blocks.move_files(2, [fails], [[1]]))
    error = "fails: the disk is broken"
    first = child.answer(Moved)
    assert (first.job, first.error) == (2, error)
    assert child.answer(FilesOpened).error == error
    assert child.answer(Moved).error is None
    blocks.expect(by_block(blocks, [2], data))
    child.tell(blocks.move_files(3, [slow], [[3]]))
    assert child.answer(Moved).error == error
