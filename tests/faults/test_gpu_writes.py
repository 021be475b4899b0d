"""Stores from a GPU to files, past the L1: GPUs that fail, and workers that leave."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.support.gpu_files import (
    CHUNKS,
    begin_store,
    directory,
    expect_nothing,
    expect_stored,
    files,
    gpu_server,
    looked_up,
    wait_begun,
    worker,
)
from tests.support.gpu_site import (
    NO,
    SOURCE,
    GpuSite,
    key_of,
    prove,
    stored,
    wait_moving_files,
)
from tests.support.gpu_worker import Event, GpuWorker
from tests.support.l2 import counter, objects
from tests.support.server import wait_until

__all__ = ["directory", "files", "gpu_server", "worker"]

STORE_POLICY = "skip_l1"


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


def test_a_worker_that_leaves_while_its_files_are_made(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """Its GPU hears of no copy after that."""
    staying, child = gpu_site.worker(2), gpu_site.child()
    files.write_text("unmade")
    key, frames = begin_store(gpu_site, worker, 1)
    gpu_site.client.call("unregister_kv_cache", 1)
    files.unlink()
    assert gpu_site.answer(frames) == NO
    expect_nothing(gpu_site, worker, key, directory)
    expect_stored(gpu_site, staying, stored(staying, 2))
    assert gpu_site.child() == child
