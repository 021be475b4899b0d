"""The NUMA nodes of the GPUs, and the arena on them."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path

import numpy as np
import pytest

from sidecar.engines.cuda.numa import gpu_nodes, place_on


def device(folder: Path, bus: str, vendor: str, kind: str, node: int | None) -> None:
    place = folder / bus
    place.mkdir()
    (place / "vendor").write_text(f"{vendor}\n")
    (place / "class").write_text(f"{kind}\n")
    if node is not None:
        (place / "numa_node").write_text(f"{node}\n")


def test_only_nvidia_gpus_whose_node_is_known_count(tmp_path: Path) -> None:
    device(tmp_path, "0000:17:00.0", "0x10de", "0x030200", 1)
    device(tmp_path, "0000:65:00.0", "0x10de", "0x030000", 0)
    device(tmp_path, "0000:66:00.0", "0x10de", "0x030200", -1)
    device(tmp_path, "0000:67:00.0", "0x10de", "0x030200", None)
    device(tmp_path, "0000:68:00.0", "0x10de", "0x068000", 3)  # a bridge of theirs
    device(tmp_path, "0000:01:00.0", "0x1a03", "0x030000", 2)  # a server's display
    assert gpu_nodes(tmp_path) == {0, 1}
    assert gpu_nodes(tmp_path / "none") == set()


@pytest.mark.parametrize(("node", "says"), [(0, "lies on"), (63, "is not placed")])
def test_the_log_says_whether_memory_could_be_placed(
    node: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every machine has a node 0, hardly one a node 63. Either way the memory is usable."""
    memory = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    with caplog.at_level(logging.INFO):
        place_on({node}, memory)
    if "Operation not permitted" in caplog.text or "not implemented" in caplog.text:
        pytest.skip("mbind is forbidden here")
    assert says in caplog.text
    memory[:] = 1
