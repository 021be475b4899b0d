"""Fixtures of several modules: an admin port over fakes, an arena, a disk that is soon full."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.tiers.base import Bytes
from tests.support.admin_site import Site
from tests.support.disks import MIB, mounted


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    running.reset()


@pytest.fixture
def arena() -> Bytes:
    arena = np.frombuffer(mmap.mmap(-1, 8 * MIB), np.uint8)
    arena[:] = np.random.default_rng(1).integers(0, 256, arena.nbytes, np.uint8)
    return arena


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "tmpfs", "-o", "size=3m") as disk:
        yield disk
