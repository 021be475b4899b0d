"""Stores from a GPU to files, past the L1, and what goes wrong with them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gpu_child import HEADER
from tests.support.gpu_site import (
    NO,
    SOURCE,
    TARGET,
    GpuSite,
    files_server_in,
    key_of,
    prove,
    stored,
    wait_moving_files,
)
from tests.support.gpu_worker import Event, GpuWorker
from tests.support.l2 import counter, objects, quarantined
from tests.support.server import Server, wait_until

SECONDS = 1.0  # all deadlines of the child
CHUNKS = 2
RECORD_BYTES = HEADER + 8192


@pytest.fixture
def gpu_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """The parameter: settings of its adapter."""
    more = getattr(request, "param", {})
    with files_server_in(tmp_path, SECONDS, "--l2-store-policy", "skip_l1", **more) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What happens to all files, from now on."""
    return tmp_path / "files"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "l2"


@pytest.fixture
def worker(gpu_site: GpuSite) -> GpuWorker:
    made = gpu_site.worker(1)
    wait_moving_files(gpu_site)
    return made


def looked_up(worker: GpuWorker, key: Any) -> int:
    return int(worker.lookup({**key, "worker_id": None}))


def expect_stored(site: GpuSite, worker: GpuWorker, key: Any, in_l1: bool = False) -> None:
    """All of it is found, and comes back as it was."""
    assert looked_up(worker, key) == CHUNKS
    prove(worker, key)
    assert site.server.l1()["total_object_count"] == CHUNKS * in_l1


def expect_nothing(site: GpuSite, worker: GpuWorker, key: Any, directory: Path) -> None:
    assert site.found(key) == 0
    wait_until(lambda: not list((directory / ".tmp").iterdir()), "nothing is left of the files")
    assert not objects(directory)
    assert site.server.l1()["total_object_count"] == 0


def begin_store(site: GpuSite, worker: GpuWorker, seed: int, event: bytes | None = None) -> Any:
    """A store that is under way: its key and its frames."""
    key = key_of(seed, CHUNKS)
    frames = site.client.frames("store", *worker.request(key, SOURCE, event))
    site.client.send(frames)
    return key, frames


def wait_begun(directory: Path) -> None:
    """Until the files of a store have been made."""
    wait_until(lambda: len(list((directory / ".tmp").iterdir())) == CHUNKS, "it has begun")


def twin_of(site: GpuSite, worker: GpuWorker) -> GpuWorker:
    """Another worker, whose blocks hold the same."""
    twin = site.worker(2)
    twin.pool.data[:] = worker.pool.data
    return twin


@pytest.mark.parametrize("what", ["fails", "refused"])
def test_after_a_failed_write_stores_go_through_the_l1(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path, what: str
) -> None:
    before = worker.pool.data.copy()
    files.write_text(what)
    key = key_of(1, CHUNKS)
    assert worker.store(key, SOURCE) == NO
    assert np.array_equal(worker.pool.data, before)
    expect_nothing(gpu_site, worker, key, directory)
    assert counter(gpu_site.server, "l2_dropped_objects", reason="gpu_write") == CHUNKS
    assert worker.store(key, SOURCE) == [b"", True]
    assert looked_up(worker, key) == CHUNKS
    prove(worker, key)
    wait_until(lambda: len(objects(directory)) == CHUNKS, "they are written from the L1")


def test_a_write_that_never_ends_costs_the_process(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    child = gpu_site.child()
    files.write_text("hangs")
    key = key_of(1, CHUNKS)
    assert worker.store(key, SOURCE) == NO
    files.unlink()
    gpu_site.reregister(worker)
    assert gpu_site.child() != child
    expect_nothing(gpu_site, worker, key, directory)


def test_after_a_write_that_never_ends_stores_go_through_the_l1(
    gpu_site: GpuSite, worker: GpuWorker, files: Path
) -> None:
    files.write_text("hangs")
    key = key_of(1, CHUNKS)
    assert worker.store(key, SOURCE) == NO
    gpu_site.reregister(worker)
    wait_moving_files(gpu_site)
    child = gpu_site.child()
    assert worker.store(key, SOURCE) == [b"", True]
    assert gpu_site.child() == child


def test_a_process_that_is_killed_in_the_middle_of_a_write(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    files.write_text("slow")
    key, frames = begin_store(gpu_site, worker, 1)
    wait_begun(directory)
    gpu_site.kill_child(signal.SIGKILL)
    assert gpu_site.answer(frames) == NO
    gpu_site.reregister(worker)
    expect_nothing(gpu_site, worker, key, directory)


def test_a_server_that_is_killed_in_the_middle_of_a_write(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    files.write_text("hangs")
    begin_store(gpu_site, worker, 1)
    wait_begun(directory)
    gpu_site.server.kill()
    gpu_site.server.start()
    assert not list((directory / ".tmp").iterdir()) and not objects(directory)


def test_a_worker_that_leaves_before_its_blocks_are_read(
    gpu_site: GpuSite, worker: GpuWorker, directory: Path
) -> None:
    """Its event never comes; another worker's stores go on meanwhile."""
    other, never = gpu_site.worker(2), Event()
    key, frames = begin_store(gpu_site, worker, 1, never.handle)
    expect_stored(gpu_site, other, stored(other, 2))
    gpu_site.client.call("unregister_kv_cache", 1)
    assert gpu_site.answer(frames) == NO
    assert gpu_site.found(key) == 0 and len(objects(directory)) == CHUNKS
    never.unlink()


def test_a_worker_that_leaves_while_its_objects_are_written(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """Nobody hears that they are stored, so they are not."""
    gpu_site.worker(2)
    files.write_text("slow")
    key, frames = begin_store(gpu_site, worker, 1)
    wait_begun(directory)
    gpu_site.client.call("unregister_kv_cache", 1)
    assert gpu_site.answer(frames) == NO
    expect_nothing(gpu_site, worker, key, directory)


def test_what_the_disk_turns_is_never_served(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """The digest is that of the blocks, not of what came to the file."""
    files.write_text("wrong")
    key = stored(worker, 1)
    files.unlink()
    before = worker.pool.data.copy()
    assert looked_up(worker, key) == CHUNKS
    assert worker.retrieve(key, TARGET) == NO
    assert np.array_equal(worker.pool.data, before)
    assert looked_up(worker, key) == 0
    wait_until(lambda: len(quarantined(directory)) == CHUNKS, "the bad files are put aside")


def test_two_workers_store_the_same(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """Both are answered when it is there; it is written once."""
    other = twin_of(gpu_site, worker)
    files.write_text("slow")
    key, first = begin_store(gpu_site, worker, 1)
    _, second = begin_store(gpu_site, other, 1)
    assert not objects(directory)
    assert gpu_site.answers(first, second) == [[b"", True]] * 2
    assert len(objects(directory)) == CHUNKS
    assert counter(gpu_site.server, "l2_store_submitted_objects_chunks") == CHUNKS
    files.unlink()
    expect_stored(gpu_site, other, key)


def test_a_clear_comes_before_what_is_on_its_way(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    files.write_text("slow")
    key, frames = begin_store(gpu_site, worker, 1)
    wait_begun(directory)
    gpu_site.client.call("clear", True)
    assert gpu_site.answer(frames) == [b"", True]
    files.unlink()
    wait_until(lambda: not objects(directory), "its files are gone")
    expect_nothing(gpu_site, worker, key, directory)
    expect_stored(gpu_site, worker, stored(worker, 2))


def test_what_is_stored_again_after_a_clear_is_found(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """The first one's files go with the clear."""
    other = twin_of(gpu_site, worker)
    files.write_text("slow")
    key, first = begin_store(gpu_site, worker, 1)
    wait_begun(directory)
    gpu_site.client.call("clear", True)
    _, second = begin_store(gpu_site, other, 1)
    assert gpu_site.answers(first, second) == [[b"", True]] * 2
    files.unlink()
    assert looked_up(other, key) == CHUNKS
    prove(other, key)


@pytest.mark.parametrize("gpu_server", [{"min_free_gb": 1e6}], indirect=True)
def test_without_room_on_the_disk_stores_go_through_the_l1(
    gpu_site: GpuSite, worker: GpuWorker, directory: Path
) -> None:
    """That another worker stores the same makes no difference."""
    other = twin_of(gpu_site, worker)
    key, first = begin_store(gpu_site, worker, 1)
    _, second = begin_store(gpu_site, other, 1)
    assert gpu_site.answers(first, second) == [[b"", True]] * 2
    expect_stored(gpu_site, other, key, in_l1=True)
    assert not objects(directory) and not list((directory / ".tmp").iterdir())


@pytest.mark.parametrize(
    "gpu_server", [{"max_capacity_gb": 4 * RECORD_BYTES / 2**30}], indirect=True
)
def test_older_objects_make_room_for_what_gpus_write(
    gpu_site: GpuSite, worker: GpuWorker, directory: Path
) -> None:
    keys = [stored(worker, seed) for seed in range(1, 5)]
    wait_until(lambda: len(objects(directory)) == 4, "the older ones are gone")
    assert [gpu_site.found(key) for key in keys] == [0, 0, CHUNKS, CHUNKS]
    assert gpu_site.server.l1()["total_object_count"] == 0
