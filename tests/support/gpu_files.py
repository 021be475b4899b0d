"""A fake GPU that moves files past the L1, and requests of two chunks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gpu_site import (
    SOURCE,
    GpuSite,
    files_server_in,
    key_of,
    prove,
    wait_moving_files,
)
from tests.support.gpu_worker import GpuWorker
from tests.support.l2 import objects
from tests.support.server import Server, wait_until

SECONDS = 1.0  # all deadlines of the child
CHUNKS = 2


@pytest.fixture
def gpu_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """The parameter: more that `files_server_in` is to be told.

    STORE_POLICY of the module is the server's.
    """
    policy = getattr(request.module, "STORE_POLICY", "default")
    more = getattr(request, "param", {})
    with files_server_in(tmp_path, SECONDS, "--l2-store-policy", policy, **more) as server:
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


def expect_served(worker: GpuWorker, key: Any) -> None:
    """All of the request is found, and comes back as it was."""
    assert looked_up(worker, key) == CHUNKS
    prove(worker, key)


def expect_stored(site: GpuSite, worker: GpuWorker, key: Any, in_l1: bool = False) -> None:
    """It is served, from the L1 or past it."""
    expect_served(worker, key)
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


def begin_two(site: GpuSite, worker: GpuWorker) -> tuple[GpuWorker, Any, list[Any]]:
    """Another worker that stores the same at the same time: it, the key, the frames of both."""
    twin = twin_of(site, worker)
    key, first = begin_store(site, worker, 1)
    _, second = begin_store(site, twin, 1)
    return twin, key, [first, second]
