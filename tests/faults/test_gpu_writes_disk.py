"""Stores from a GPU to files, past the L1: what the disk does, who else stores, and clears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.gpu_child import HEADER
from tests.support.gpu_files import (
    CHUNKS,
    begin_store,
    begin_two,
    directory,
    expect_nothing,
    expect_stored,
    files,
    gpu_server,
    looked_up,
    twin_of,
    wait_begun,
    worker,
)
from tests.support.gpu_site import (
    NO,
    TARGET,
    GpuSite,
    prove,
    stored,
)
from tests.support.gpu_worker import GpuWorker
from tests.support.l2 import counter, objects, quarantined
from tests.support.server import wait_until

__all__ = ["directory", "files", "gpu_server", "worker"]

STORE_POLICY = "skip_l1"

RECORD_BYTES = HEADER + 8192


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
    files.write_text("slow")
    other, key, requests = begin_two(gpu_site, worker)
    assert not objects(directory)
    assert gpu_site.answers(*requests) == [[b"", True]] * 2
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
    other, key, requests = begin_two(gpu_site, worker)
    assert gpu_site.answers(*requests) == [[b"", True]] * 2
    expect_stored(gpu_site, other, key, in_l1=True)
    assert not objects(directory) and not list((directory / ".tmp").iterdir())


@pytest.mark.parametrize("gpu_server", [{"timeout_seconds": 1, "num_workers": 1}], indirect=True)
def test_a_disk_that_is_stuck_does_not_hold_stores(
    gpu_site: GpuSite, worker: GpuWorker, files: Path, directory: Path
) -> None:
    """Nor is a file that comes too late ever used."""
    files.write_text("unmade")
    key = stored(worker, 1)
    expect_stored(gpu_site, worker, key, in_l1=True)
    files.unlink()
    wait_until(lambda: not list((directory / ".tmp").iterdir()), "no file is left over")
    gpu_site.server.assert_no_leases()


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
