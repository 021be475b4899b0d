"""NIXL's GDS and GDS_MT and libcufile, all real, over a stub of the driver."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.engines.cuda.plan import STEP_RUNS
from sidecar.engines.cuda.protocol import FilesOpened, Mapped, Moved, OpenFiles
from tests.support.gds import Gds, gds_in
from tests.support.gpu_child import (
    HEADER,
    Blocks,
    GpuChild,
    by_block,
    expect_written,
    new_file,
    stored,
)

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def gds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gds]:
    with gds_in(tmp_path_factory.mktemp("gds")) as made:
        yield made


@pytest.fixture(scope="module", params=["GDS", "GDS_MT"])
def child(request: pytest.FixtureRequest, gds: Gds) -> Iterator[GpuChild]:
    """One whose files are open."""
    made = GpuChild("sidecar.engines.cuda", gds.environment, gds.prefix)
    made.tell(OpenFiles(request.param, {}))
    assert made.answer(FilesOpened) == FilesOpened(None)
    yield made
    made.close()


@pytest.fixture
def blocks(child: GpuChild) -> Iterator[Blocks]:
    with mapped(child) as made:
        yield made


def mapped(child: GpuChild, **shape: int) -> Blocks:
    made = Blocks(next(_numbers), **shape)
    child.tell(made.map_order())
    assert child.answer(Mapped).error is None
    return made


def open_files(child: GpuChild) -> int:
    return len(os.listdir(f"/proc/{child.process.pid}/fd"))


def test_objects_come_from_files_into_blocks(child: GpuChild, blocks: Blocks, gds: Gds) -> None:
    """More than are on their way at once, again and again: nothing of a file is kept open."""
    targets = [[4 * n + (k * 3 + n) % 4 for k in range(4)] for n in range(8)]
    size, before = blocks.object_bytes(4), 0
    for turn in range(4):
        made = [stored(gds.directory / f"object{n}", size, seed=8 * turn + n) for n in range(8)]
        child.tell(blocks.move_files(turn, [stored_object for stored_object, _ in made], targets))
        moved = child.answer(Moved)
        assert (moved.job, moved.error) == (turn, None)
        pairs = zip(targets, made, strict=True)
        blocks.expect(
            {k: v for ids, (_, data) in pairs for k, v in by_block(blocks, ids, data).items()}
        )
        before = before or open_files(child)
    assert open_files(child) == before


def test_objects_go_from_blocks_to_files(child: GpuChild, blocks: Blocks, gds: Gds) -> None:
    """More than are on their way at once; headers and padding are not written."""
    rng = np.random.default_rng(1)
    blocks.data[:] = rng.integers(0, 256, blocks.data.shape, np.uint8)
    ids = [[4 * n + (k * 3 + n) % 4 for k in range(4)] for n in range(8)]
    before = blocks.data.copy()
    made = [new_file(gds.directory / f"new{n}", blocks.object_bytes(4)) for n in range(8)]
    child.tell(blocks.move_files(1, made, ids, is_store=True))
    moved = child.answer(Moved)
    assert (moved.job, moved.error) == (1, None)
    expect_written(made, moved.digests, [before[:, of].tobytes() for of in ids])
    assert np.array_equal(blocks.data, before)


def test_a_large_object_of_many_runs(child: GpuChild, gds: Gds) -> None:
    """More than NIXL asks for at once, into more runs than a kernel takes."""
    count = 3 * STEP_RUNS // 2
    with mapped(child, blocks=2 * count, run=1024) as blocks:
        ids = list(range(0, 2 * count, 2))
        whole, data = stored(gds.directory / "large", blocks.object_bytes(count))
        child.tell(blocks.move_files(1, [whole], [ids]))
        assert child.answer(Moved).error is None
        blocks.expect(by_block(blocks, ids, data))
        made = new_file(gds.directory / "large again", blocks.object_bytes(count))
        child.tell(blocks.move_files(2, [made], [ids], is_store=True))
        expect_written([made], child.answer(Moved).digests, [data.tobytes()])


@pytest.mark.parametrize("run", [4, 24, 1000])
def test_lengths_that_are_no_whole_pages(child: GpuChild, gds: Gds, run: int) -> None:
    with mapped(child, planes=4, run=run) as blocks:
        ids = list(range(30, 10, -1))
        odd, data = stored(gds.directory / "odd", blocks.object_bytes(len(ids)))
        child.tell(blocks.move_files(1, [odd], [ids]))
        assert child.answer(Moved).error is None
        blocks.expect(by_block(blocks, ids, data))
        made = new_file(gds.directory / "odd again", blocks.object_bytes(len(ids)))
        child.tell(blocks.move_files(2, [made], [ids], is_store=True))
        expect_written([made], child.answer(Moved).digests, [data.tobytes()])


def test_only_wanted_blocks_are_written(child: GpuChild, blocks: Blocks, gds: Gds) -> None:
    one, data = stored(gds.directory / "one", blocks.object_bytes(2), seed=1)
    none, _ = stored(gds.directory / "none", blocks.object_bytes(2), seed=2)
    Path(none.path).unlink()  # it is not even read
    child.tell(blocks.move_files(1, [none, one], [[1, 2], [3, 4]], [[False, False], [False, True]]))
    assert child.answer(Moved).error is None
    blocks.expect({4: by_block(blocks, [3, 4], data)[4]})


def test_what_is_not_as_it_was_stored_is_not_written(
    child: GpuChild, blocks: Blocks, gds: Gds
) -> None:
    """One error after another, each for its transfer only."""
    size = blocks.object_bytes(2)
    turned, _ = stored(gds.directory / "turned", size)
    with open(turned.path, "r+b") as file:
        file.seek(HEADER + size - 1)
        byte = file.read(1)
        file.seek(HEADER + size - 1)
        file.write(bytes([byte[0] ^ 1]))
    short, _ = stored(gds.directory / "short", size)
    os.truncate(short.path, HEADER + size - 1)
    gone, _ = stored(gds.directory / "gone", size)
    Path(gone.path).unlink()
    expected = {
        turned: "not the bytes that were stored",
        short: f"{HEADER + size - 1} bytes, of which {HEADER + size} are needed",
        gone: "No such file or directory",
    }
    for job, (bad, message) in enumerate(expected.items()):
        child.tell(blocks.move_files(job, [bad], [[1, 2]]))
        assert child.answer(Moved).error == f"{bad.path}: {message}"
    good, data = stored(gds.directory / "good", size)
    blocks.expect({})
    child.tell(blocks.move_files(9, [good], [[1, 2]]))
    assert child.answer(Moved).error is None
    blocks.expect(by_block(blocks, [1, 2], data))


def test_a_file_that_is_not_as_it_was_made_is_not_written(
    child: GpuChild, blocks: Blocks, gds: Gds
) -> None:
    size = blocks.object_bytes(2)
    short, gone = new_file(gds.directory / "short", size), new_file(gds.directory / "gone", size)
    os.truncate(short.path, HEADER)
    os.unlink(gone.path)
    messages = {
        short: f"{HEADER} bytes, of which {HEADER + size} are needed",
        gone: "No such file or directory",
    }
    for job, (bad, message) in enumerate(messages.items()):
        child.tell(blocks.move_files(job, [bad], [[1, 2]], is_store=True))
        moved = child.answer(Moved)
        assert (moved.error, moved.file_failed) == (f"{bad.path}: {message}", True)
    assert os.stat(short.path).st_size == HEADER and not Path(gone.path).exists()


def test_a_backend_that_does_not_start_is_an_answer(gds: Gds, tmp_path: Path) -> None:
    child = GpuChild("sidecar.engines.cuda", gds.environment, gds.prefix)
    try:
        child.tell(OpenFiles("NO_SUCH_BACKEND", {}))
        error = child.answer(FilesOpened).error
        assert error is not None and error.startswith("NO_SUCH_BACKEND: nixl")
        with mapped(child) as blocks:
            one, _ = stored(tmp_path / "one", blocks.object_bytes(1))
            child.tell(blocks.move_files(1, [one], [[1]]))
            assert child.answer(Moved).error == error
    finally:
        child.close()


def test_after_a_read_that_failed_nothing_more_is_read(gds: Gds, tmp_path: Path) -> None:
    """Without a batch, NIXL's GDS can begin none."""
    log = tmp_path / "log"
    child = GpuChild("sidecar.engines.cuda", gds.environment, gds.prefix, log)
    try:
        child.tell(OpenFiles("GDS", {"batch_pool_size": "0"}))
        assert child.answer(FilesOpened).error is None
        with mapped(child) as blocks:
            one, _ = stored(gds.directory / "one", blocks.object_bytes(1))
            child.tell(blocks.move_files(1, [one], [[1]]))
            error = child.answer(Moved).error
            assert error == "GDS: nixlBackendError NIXL_ERR_BACKEND"
            assert child.answer(FilesOpened).error == error
            child.tell(blocks.move_files(2, [one], [[1]]))
            assert child.answer(Moved).error == error
            blocks.expect({})
        assert f"no more copies between files and GPU memory: {error}" in log.read_text()
    finally:
        child.close()
