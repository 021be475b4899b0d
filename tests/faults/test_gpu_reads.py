"""Files straight to a GPU that does not play along: objects come through the L1, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.gpu_site import (
    NO,
    SOURCE,
    TARGET,
    GpuSite,
    files_server_in,
    stored,
    wait_moving_files,
)
from tests.support.gpu_worker import Event, GpuWorker
from tests.support.l2 import clear_l1, counter, wait_written
from tests.support.server import Server, wait_until

SECONDS = 1.0  # all deadlines of the child
CHUNKS = 2


@pytest.fixture
def gpu_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """The parameter: how many seconds its child takes to get ready for files."""
    open_seconds = getattr(request, "param", 0)
    with files_server_in(tmp_path, SECONDS, open_seconds=open_seconds) as server:
        yield server


@pytest.fixture
def reads(tmp_path: Path) -> Path:
    """What happens to all reads, from now on."""
    return tmp_path / "files"


def in_files(site: GpuSite, worker: GpuWorker, seed: int) -> Any:
    """The key of a request that is in files only."""
    key = stored(worker, seed)
    wait_written(site.server)
    clear_l1(site.server)
    return key


def looked_up(worker: GpuWorker, key: Any) -> int:
    return int(worker.lookup({**key, "worker_id": None}))


def prove(worker: GpuWorker, key: Any) -> None:
    """All of the request is found, and comes back as it was."""
    assert looked_up(worker, key) == CHUNKS
    worker.pool.data[:, TARGET] = 0
    assert worker.retrieve(key, TARGET) == [b"", True]
    assert np.array_equal(worker.pool.data[:, TARGET], worker.pool.data[:, SOURCE])


@pytest.mark.parametrize("gpu_server", [3 * SECONDS], indirect=True)
def test_a_start_that_takes_long_is_waited_for(gpu_site: GpuSite) -> None:
    """Longer than the process may be silent otherwise."""
    worker = gpu_site.worker(1)
    child = gpu_site.child()
    wait_moving_files(gpu_site)
    assert gpu_site.child() == child
    key = in_files(gpu_site, worker, 1)
    prove(worker, key)
    assert gpu_site.server.l1()["total_object_count"] == 0


def test_after_a_failed_read_objects_come_through_the_l1(gpu_site: GpuSite, reads: Path) -> None:
    worker = gpu_site.worker(1)
    wait_moving_files(gpu_site)
    key = in_files(gpu_site, worker, 1)
    reads.write_text("fails")
    assert looked_up(worker, key) == CHUNKS
    assert worker.retrieve(key, TARGET) == NO
    prove(worker, key)
    assert gpu_site.server.l1()["total_object_count"] == CHUNKS
    assert "files go through the L1: " in gpu_site.server.stderr()
    assert counter(gpu_site.server, "l2_corrupt_objects") == 0


def test_a_read_that_never_ends_costs_the_process(gpu_site: GpuSite, reads: Path) -> None:
    worker = gpu_site.worker(1)
    wait_moving_files(gpu_site)
    key, child = in_files(gpu_site, worker, 1), gpu_site.child()
    reads.write_text("hangs")
    assert looked_up(worker, key) == CHUNKS
    before = worker.pool.data.copy()
    assert worker.retrieve(key, TARGET) == NO
    assert np.array_equal(worker.pool.data, before)
    reads.unlink()
    gpu_site.reregister(worker)
    assert gpu_site.child() != child
    prove(worker, key)


def test_a_process_that_is_killed_in_the_middle_of_a_read(gpu_site: GpuSite, reads: Path) -> None:
    worker = gpu_site.worker(1)
    wait_moving_files(gpu_site)
    key = in_files(gpu_site, worker, 1)
    reads.write_text("slow")
    assert looked_up(worker, key) == CHUNKS
    frames = worker.client.frames("retrieve", *worker.request(key, TARGET), 0)
    worker.client.send(frames)
    gpu_site.kill_child(signal.SIGKILL)
    assert gpu_site.answer(frames) == NO
    gpu_site.reregister(worker)
    prove(worker, key)


@pytest.mark.parametrize("gpu_server", [-1], indirect=True)
def test_a_crash_at_the_start_of_nixl_costs_the_files_only(gpu_site: GpuSite) -> None:
    """The next process does not open them: a crash again and again would cost the GPU."""
    worker = gpu_site.worker(1)
    wait_until(lambda: "it ended when it opened them" in gpu_site.server.stderr(), "the crash")
    gpu_site.reregister(worker)
    child = gpu_site.child()
    key = in_files(gpu_site, worker, 1)
    prove(worker, key)
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
