"""Files straight to a GPU that does not play along: objects come through the L1, or not at all."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gpu_files import (
    CHUNKS,
    SECONDS,
    expect_served,
    files,
    gpu_server,
    looked_up,
    worker,
)
from tests.support.gpu_site import (
    NO,
    SOURCE,
    TARGET,
    GpuSite,
    stored,
    wait_moving_files,
)
from tests.support.gpu_worker import Event, GpuWorker
from tests.support.l2 import clear_l1, counter, wait_written
from tests.support.server import wait_until

__all__ = ["files", "gpu_server", "worker"]


def in_files(site: GpuSite, worker: GpuWorker, seed: int) -> Any:
    """The key of a request that is in files only."""
    key = stored(worker, seed)
    wait_written(site.server)
    clear_l1(site.server)
    return key


def promised(site: GpuSite, worker: GpuWorker, files: Path, what: str) -> Any:
    """The same, which a lookup has found; `what` happens to all files from then on."""
    key = in_files(site, worker, 1)
    files.write_text(what)
    assert looked_up(worker, key) == CHUNKS
    return key


@pytest.mark.parametrize("gpu_server", [{"open_seconds": 3 * SECONDS}], indirect=True)
def test_a_start_that_takes_long_is_waited_for(gpu_site: GpuSite) -> None:
    """Longer than the process may be silent otherwise."""
    worker = gpu_site.worker(1)
    child = gpu_site.child()
    wait_moving_files(gpu_site)
    assert gpu_site.child() == child
    key = in_files(gpu_site, worker, 1)
    expect_served(worker, key)
    assert gpu_site.server.l1()["total_object_count"] == 0


def test_after_a_failed_read_objects_come_through_the_l1(
    gpu_site: GpuSite, worker: GpuWorker, files: Path
) -> None:
    key = promised(gpu_site, worker, files, "fails")
    assert worker.retrieve(key, TARGET) == NO
    expect_served(worker, key)
    assert gpu_site.server.l1()["total_object_count"] == CHUNKS
    assert "files go through the L1: " in gpu_site.server.stderr()
    assert counter(gpu_site.server, "l2_corrupt_objects") == 0


def test_a_read_that_never_ends_costs_the_process(
    gpu_site: GpuSite, worker: GpuWorker, files: Path
) -> None:
    key, child = promised(gpu_site, worker, files, "hangs"), gpu_site.child()
    before = worker.pool.data.copy()
    assert worker.retrieve(key, TARGET) == NO
    assert np.array_equal(worker.pool.data, before)
    files.unlink()
    gpu_site.reregister(worker)
    assert gpu_site.child() != child
    expect_served(worker, key)


def test_a_process_that_is_killed_in_the_middle_of_a_read(
    gpu_site: GpuSite, worker: GpuWorker, files: Path
) -> None:
    key = promised(gpu_site, worker, files, "slow")
    frames = worker.client.frames("retrieve", *worker.request(key, TARGET), 0)
    worker.client.send(frames)
    gpu_site.kill_child(signal.SIGKILL)
    assert gpu_site.answer(frames) == NO
    gpu_site.reregister(worker)
    expect_served(worker, key)


@pytest.mark.parametrize("gpu_server", [{"open_seconds": -1}], indirect=True)
def test_a_crash_at_the_start_of_nixl_costs_the_files_only(gpu_site: GpuSite) -> None:
    """The next process does not open them: a crash again and again would cost the GPU."""
    worker = gpu_site.worker(1)
    wait_until(lambda: "it ended when it opened them" in gpu_site.server.stderr(), "the crash")
    gpu_site.reregister(worker)
    child = gpu_site.child()
    key = in_files(gpu_site, worker, 1)
    expect_served(worker, key)
    assert gpu_site.server.l1()["total_object_count"] == CHUNKS
    assert gpu_site.child() == child


def test_a_worker_that_leaves_spoils_nothing_for_others(gpu_site: GpuSite) -> None:
    """Both were promised the same chunks; the load of one ends with its registration."""
    leaving, staying = gpu_site.worker(1), gpu_site.worker(2)
    wait_moving_files(gpu_site)
    key = in_files(gpu_site, leaving, 1)
    first, second = {**key, "request_id": "first"}, {**key, "request_id": "second"}
    assert looked_up(leaving, first) == looked_up(staying, second) == CHUNKS
    never = Event()
    frames = gpu_site.client.frames("retrieve", *leaving.request(first, TARGET, never.handle), 0)
    gpu_site.client.send(frames)
    gpu_site.client.call("unregister_kv_cache", 1)
    assert gpu_site.answer(frames) == NO
    assert staying.retrieve(second, TARGET) == [b"", True]
    stored_blocks, got = leaving.pool.data[:, SOURCE], staying.pool.data[:, TARGET]
    assert np.array_equal(stored_blocks, got)
    never.unlink()
