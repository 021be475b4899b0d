"""Fixtures shared by the tiers that need a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar import shared_libraries
from tests.support.server import SHM, Server

with suppress(ModuleNotFoundError):  # a GPU machine may have pytest alone
    from hypothesis import settings

    # How long an example takes says how busy the machine is.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

# The files that take minutes, most of it waiting for servers that are dead or silent.
LONG = ("test_adapter_faults.py", "test_launch.py", "test_monitoring.py", "test_page.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n`, file by file: what takes long begins first."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if reason := shared_libraries.lack("vllm"):
        for item in items:
            if item.get_closest_marker("engine") and not item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def no_worker_memory_left() -> Iterator[None]:
    """Remove the worker segments of tests that failed before they could."""
    yield
    for left in SHM.glob(f"lmcache_kv_{os.getpid()}_*"):
        left.unlink()


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of this test's own (not started); they are stopped when it ends."""
    made: list[Server] = []

    def make(*flags: str, **options: Any) -> Server:
        made.append(Server(tmp_path, *flags, **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def own_server(new_server: Callable[..., Server]) -> Server:
    """A started server that this test may kill."""
    return new_server().start()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for every test that leaves it as it was."""
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The shared server; the test fails if it leaves a lease behind or the server dead."""
    if not shared_server.running:  # an earlier test's fault, and that test has said so
        shared_server.start()
    yield shared_server
    assert shared_server.running, f"the server died:\n{shared_server.stderr()}"
    shared_server.assert_no_leases()
