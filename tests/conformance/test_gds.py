"""NIXL's GDS and GDS_MT and libcufile, all real, over a stub of the driver."""

from __future__ import annotations

import subprocess
import sys
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.engines.cuda.protocol import FilesOpened, Mapped, Moved, OpenFiles, Ping, Pong
from tests.support.gds import Gds, gds_in
from tests.support.gpu_child import Blocks, GpuChild, by_block, stored

BACKENDS = ["GDS", "GDS_MT"]


@pytest.fixture(scope="module")
def gds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gds]:
    with gds_in(tmp_path_factory.mktemp("gds")) as made:
        yield made


@pytest.fixture(scope="module", params=BACKENDS)
def child(
    request: pytest.FixtureRequest, gds: Gds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuChild]:
    """One whose files are open."""
    log = tmp_path_factory.mktemp("child") / "log"
    made = GpuChild("tests.support.gds_child", gds.environment, gds.prefix, log)
    made.tell(OpenFiles(request.param, {}))
    assert made.answer(FilesOpened).error is None
    yield made
    made.close()


@pytest.fixture
def blocks(child: GpuChild, request: pytest.FixtureRequest) -> Iterator[Blocks]:
    made = Blocks(abs(hash(request.node.nodeid)) % 2**31)
    child.tell(made.map_order())
    assert child.answer(Mapped).error is None
    yield made
    made.close()


def test_objects_come_from_files_into_blocks(child: GpuChild, blocks: Blocks, gds: Gds) -> None:
    """Many at once, of odd lengths; then those of a worker with more bytes in each."""
    ids = [[4 * n + (k * 3 + n) % 4 for k in range(4)] for n in range(8)]
    made = [
        stored(gds.directory / f"a{n}", blocks.object_bytes(4), seed=n) for n in range(len(ids))
    ]
    child.tell(blocks.fetch(1, [o for o, _ in made], ids))
    moved = child.answer(Moved)
    assert (moved.job, moved.error) == (1, None)
    contents = {}
    for target, (_, data) in zip(ids, made, strict=True):
        contents |= by_block(blocks, target, data)
    blocks.expect(contents)
