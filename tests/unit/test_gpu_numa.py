"""The NUMA nodes of the GPUs, and the arena on them."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache.arena import PIECE_BYTES, Arena, parts_of
from sidecar.cache.segment import Segment
from sidecar.engines.cuda import numa
from sidecar.engines.cuda.driver import Device
from sidecar.engines.cuda.numa import gpu_nodes, near_part, place, place_on
from tests.support.pci import device

MIB = 1 << 20
DEFAULT, PREFERRED, INTERLEAVE = 0, 1, 3  # as mempolicy.h numbers them


def test_only_nvidia_gpus_whose_node_is_known_count(tmp_path: Path) -> None:
    device(tmp_path, "0000:17:00.0", 1)
    device(tmp_path, "0000:65:00.0", 0, kind="0x030000")
    device(tmp_path, "0000:66:00.0", -1)
    device(tmp_path, "0000:67:00.0", None)
    device(tmp_path, "0000:68:00.0", 3, kind="0x068000")  # a bridge of theirs
    device(tmp_path, "0000:01:00.0", 2, vendor="0x1a03", kind="0x030000")  # a server's display
    assert gpu_nodes(tmp_path) == [0, 1]
    assert gpu_nodes(tmp_path / "none") == []


@pytest.mark.parametrize(("node", "says"), [(0, "lies on"), (63, "is not placed")])
def test_the_log_says_whether_memory_could_be_placed(
    node: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every machine has a node 0, hardly one a node 63. Either way the memory is usable."""
    memory = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    with caplog.at_level(logging.INFO):
        place_on([node], memory)
    skip_where_it_is_forbidden(caplog)
    assert says in caplog.text
    memory[:] = 1


@given(st.integers(1, 40 * PIECE_BYTES), st.integers(0, 9))
def test_parts_are_whole_pieces_of_about_one_size(size: int, count: int) -> None:
    parts = parts_of(size, count)
    assert len(parts) == (count if 0 < count <= size // PIECE_BYTES else 1)
    assert (parts[0].start, parts[-1].stop) == (0, size)
    assert all(one.stop == other.start for one, other in pairwise(parts))
    assert all(part.start % PIECE_BYTES == 0 for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) < 2 * PIECE_BYTES


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(f"kvtest_numa_{os.getpid()}", 130 * MIB)
    yield made
    made.remove()


def test_each_part_is_placed_on_its_node(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    """Node 0 twice, as there may be no other here; the rule is the kernel's own word for it."""
    arena = placed(segment, [0, 0], caplog)
    assert "the L1 from 0.00 to 0.06 GiB lies on the GPUs' NUMA nodes: 0" in caplog.text
    assert "the L1 from 0.06 to 0.13 GiB lies on the GPUs' NUMA nodes: 0" in caplog.text
    assert rules(arena) == [(PREFERRED, 1), (PREFERRED, 1)]


@pytest.mark.parametrize(
    ("nodes", "rule"), [([0], (PREFERRED, 1)), ([0, 0, 0], (INTERLEAVE, 1)), ([], (DEFAULT, 0))]
)
def test_an_arena_that_is_not_cut_is_placed_as_a_whole(
    segment: Segment, nodes: list[int], rule: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Two pieces are no parts for three nodes."""
    assert rules(placed(segment, nodes, caplog)) == [rule]


def test_a_part_whose_node_is_not_there_is_used_all_the_same(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    arena = placed(segment, [0, 63], caplog)
    assert "the L1 from 0.06 to 0.13 GiB is not placed" in caplog.text
    arena.bytes[arena.parts[1].start] = 1


@pytest.mark.parametrize(
    ("bus", "nodes", "size", "part"),
    [
        ("a", [0, 1], 3 * PIECE_BYTES, 1),
        ("b", [0, 1], 3 * PIECE_BYTES, 0),
        ("a", [1], 3 * PIECE_BYTES, None),
        ("a", [0, 1], PIECE_BYTES, None),
        ("c", [0, 1], 3 * PIECE_BYTES, None),
        ("unknown", [0, 1], 3 * PIECE_BYTES, None),
        ("a", [], 3 * PIECE_BYTES, None),
    ],
)
def test_a_gpu_is_near_the_part_on_its_node(
    bus: str,
    nodes: Sequence[int],
    size: int,
    part: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numa, "PCI_DEVICES", tmp_path)
    for name, node in (("a", 1), ("b", 0), ("c", -1)):
        device(tmp_path, name, node)
    assert near_part(Device("", "", bus, 1, 12080, False), size, nodes) == part


def placed(segment: Segment, nodes: list[int], caplog: pytest.LogCaptureFixture) -> Arena:
    """An arena on these nodes."""
    arena = Arena(segment, parts=len(nodes))
    with caplog.at_level(logging.INFO):
        place(arena, nodes)
    skip_where_it_is_forbidden(caplog)
    return arena


def skip_where_it_is_forbidden(caplog: pytest.LogCaptureFixture) -> None:
    if "Operation not permitted" in caplog.text or "not implemented" in caplog.text:
        pytest.skip("mbind is forbidden here")


def rules(arena: Arena) -> list[tuple[int, int]]:
    """The policy of each part's pages, as the kernel tells it: its mode and its set of nodes."""
    number = {"x86_64": 239, "aarch64": 236}.get(platform.machine())
    if number is None:
        pytest.skip("get_mempolicy has another number here")
    found, libc = [], ctypes.CDLL(None)
    for part in arena.parts:
        mode, nodes = ctypes.c_int(), (ctypes.c_ulong * 16)()
        for address in (part.start, part.stop - 1):
            at = ctypes.c_void_p(arena.bytes.ctypes.data + address)
            code = libc.syscall(number, ctypes.byref(mode), nodes, ctypes.c_ulong(1024), at, 2)
            assert code == 0
            found.append((mode.value, nodes[0]))
    assert found[::2] == found[1::2], "a part has one rule from its first to its last byte"
    return found[::2]
