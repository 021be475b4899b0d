"""Shapes and hints -> bytes: for every format, what is gathered is what the block means."""

import mmap
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.engines.groups import GroupSpec, worker_layout
from sidecar.engines.host import HostWorker
from sidecar.engines.layout import TensorSpec, UnknownLayout, detect_format, layer_layout

NB, BS, NH, HS = 6, 4, 2, 8
FORMATS = [
    (1, (2, NB, BS, NH, HS), "NHD"), (2, (NB, 2, BS, NH, HS), "NHD"),
    (6, (2, NB, NH, BS, HS), "HND"), (7, (NB, 2, NH, BS, HS), "HND"),
    (12, (NB, NH, BS, 2 * HS), "HND"), (12, (NB, NH, BS, 2 * HS), None),
    (12, (NB, NH, BS, 2 * HS), "BLHNC"), (13, (NB, BS, NH, 2 * HS), "NHD"),
    (13, (NB, BS, NH, 2 * HS), "BLNHC"), (3, (NB, BS, HS), None),
]  # fmt: skip


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def spec(shape, stride=None, offset=0, dtype="float16") -> TensorSpec:
    return TensorSpec(dtype, tuple(shape), tuple(stride or dense(shape)), offset)


def as_array(memory: np.ndarray, s: TensorSpec) -> np.ndarray:
    flat = memory.view(np.uint16)[s.storage_offset :]
    return np.lib.stride_tricks.as_strided(flat, s.shape, [2 * n for n in s.stride])


def block(array: np.ndarray, format_id: int, b: int) -> np.ndarray:
    return array[:, b] if format_id in (1, 6) else array[b]


def worker(specs: list[TensorSpec], hint: str | None, memory: np.ndarray, **group):
    layers = [layer_layout(i, s, hint, memory.nbytes) for i, s in enumerate(specs)]
    groups = [GroupSpec(tuple(range(len(specs))), **group)] if group else []
    layout = worker_layout(layers, groups, chunk_size=2 * BS)
    name = SEGMENTS[memory.ctypes.data]
    return layout, HostWorker(layout, [name] * len(specs), {name: memory.nbytes})


SEGMENTS: dict[int, str] = {}  # by the address of our own mapping


@pytest.fixture(autouse=True)
def no_segment_stays() -> Iterator[None]:
    yield
    for name in SEGMENTS.values():
        Path("/dev/shm" + name).unlink()
    SEGMENTS.clear()


def random_memory(nbytes: int) -> np.ndarray:
    """A client's segment, mapped here too, full of random bytes."""
    name = f"/lmcache_kv_test_{uuid.uuid4().hex}"
    fd = os.open("/dev/shm" + name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, nbytes)
    memory = np.frombuffer(mmap.mmap(fd, nbytes), np.uint8)
    os.close(fd)
    memory[:] = np.random.default_rng(1).integers(0, 256, nbytes, dtype=np.uint8)
    SEGMENTS[memory.ctypes.data] = name
    return memory


@pytest.mark.parametrize(("format_id", "shape", "hint"), FORMATS)
def test_store_scribble_retrieve(format_id: int, shape: tuple, hint: str | None) -> None:
    size = int(np.prod(shape))
    specs = [spec(shape), spec(shape, offset=size)]
    memory = random_memory(2 * size * 2)
    layout, host = worker(specs, hint, memory)
    assert layout.groups[0].layers[0].format_id == format_id
    arrays = [as_array(memory, s) for s in specs]
    before = [a.copy() for a in arrays]
    slot = np.zeros(layout.object_bytes, np.uint8)
    host.gather([np.array([4, 1])], slot)
    memory[:] = 0
    host.scatter(slot, [np.array([0, 3])], [None])
    for array, old in zip(arrays, before, strict=True):
        for source, target in ((4, 0), (1, 3)):
            got, want = block(array, format_id, target), block(old, format_id, source)
            assert (got == want).all()
        untouched = [b for b in range(NB) if b not in (0, 3)]
        assert all((block(array, format_id, b) == 0).all() for b in untouched)


def test_padded_blocks_are_moved_without_their_padding() -> None:
    shape, pad = (NB, BS, HS), 6
    s = spec(shape, (BS * HS + pad, HS, 1))
    memory = random_memory(NB * (BS * HS + pad) * 2)
    layout, host = worker([s], None, memory)
    assert layout.object_bytes == 2 * BS * HS * 2
    before = memory.copy()
    slot = np.zeros(layout.object_bytes, np.uint8)
    host.gather([np.array([5, 2])], slot)
    assert (slot.view(np.uint16).reshape(2, BS, HS) == as_array(before, s)[[5, 2]]).all()
    host.scatter(slot, [np.array([0, 1])], [None])
    after, old = as_array(memory, s), as_array(before, s)
    assert (after[[0, 1]] == old[[5, 2]]).all() and (after[2:] == old[2:]).all()
    rows, old_rows = memory.reshape(NB, -1), before.reshape(NB, -1)
    assert (rows[:, BS * HS * 2 :] == old_rows[:, BS * HS * 2 :]).all()


def test_a_fused_pool_with_all_layers_in_a_block() -> None:
    layers, run = 3, NH * BS * 2 * HS
    specs = [
        spec((NB, NH, BS, 2 * HS), (layers * run, BS * 2 * HS, 2 * HS, 1), i * run)
        for i in range(layers)
    ]
    memory = random_memory(NB * layers * run * 2)
    layout, host = worker(specs, "BLHNC", memory)
    slot = np.zeros(layout.object_bytes, np.uint8)
    host.gather([np.array([2, 0])], slot)
    got = slot.view(np.uint16).reshape(layers, 2, NH, BS, 2 * HS)
    for i, s in enumerate(specs):
        assert (got[i] == as_array(memory, s)[[2, 0]]).all()


def test_blocks_in_pieces_are_gathered_piece_by_piece() -> None:
    # Heads outermost: a block is NH runs, far apart.
    s = spec((NB, NH, BS, HS), (NH * BS * HS * 2, BS * HS * 2, HS, 1))
    memory = random_memory(NB * NH * BS * HS * 2 * 2)
    layout, host = worker([s], "HND", memory)
    assert len(layout.groups[0].layers[0].planes) == NH
    slot = np.zeros(layout.object_bytes, np.uint8)
    host.gather([np.array([3, 3])], slot)
    old = as_array(memory, s).copy()
    memory[:] = 0
    host.scatter(slot, [np.array([1, 2])], [None])
    assert (as_array(memory, s)[[1, 2]] == old[3]).all()


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_make_up_the_whole(parts: int) -> None:
    run = BS * HS
    specs = [spec((NB, BS, HS), (run + 4, HS, 1), i * NB * (run + 4)) for i in range(3)]
    memory = random_memory(3 * NB * (run + 4) * 2)
    layout, host = worker(specs, None, memory)
    slot, blocks = np.zeros(layout.object_bytes, np.uint8), [np.array([5, 0])]
    for part in range(parts):
        host.gather(blocks, slot, part, parts)
    want = np.stack([as_array(memory, s)[[5, 0]] for s in specs])
    assert (slot.view(np.uint16).reshape(want.shape) == want).all()
    target = [np.array([1, 2])]
    for part in range(parts):
        host.scatter(slot, target, [None], part, parts)
    assert all((as_array(memory, s)[[1, 2]] == w).all() for s, w in zip(specs, want, strict=True))


def test_groups_and_segments_of_different_geometry() -> None:
    one, two = random_memory(NB * BS * HS * 2), random_memory(2 * NB * 2 * BS * 3 * 2)
    tensors = [
        (spec((NB, BS, HS)), one),
        (spec((NB, 2 * BS, 3)), two),
        (spec((NB, 2 * BS, 3), offset=NB * 2 * BS * 3), two),
    ]
    layers = [layer_layout(i, s, None, m.nbytes) for i, (s, m) in enumerate(tensors)]
    groups = [GroupSpec((1, 2)), GroupSpec((0,))]
    layout = worker_layout(layers, groups, chunk_size=2 * BS)
    names = [SEGMENTS[m.ctypes.data] for _, m in tensors]
    sizes = {n: m.nbytes for n, (_, m) in zip(names, tensors, strict=True)}
    host = HostWorker(layout, names, sizes)
    slot = np.zeros(layout.object_bytes, np.uint8)
    before = [as_array(m, s).copy() for s, m in tensors]
    host.gather([np.array([3]), np.array([5, 1])], slot)
    one[:], two[:] = 0, 0
    host.scatter(slot, [np.array([0]), np.array([2, 4])], [None, None])
    after = [as_array(m, s) for s, m in tensors]
    assert (after[1][0] == before[1][3]).all() and (after[2][0] == before[2][3]).all()
    assert (after[0][[2, 4]] == before[0][[5, 1]]).all()
    assert sum(int((a != 0).any(axis=(1, 2)).sum()) for a in after) == 4


def test_a_dropped_worker_is_unmapped() -> None:
    memory = random_memory(NB * BS * HS * 2)
    _, host = worker([spec((NB, BS, HS))], None, memory)
    name = SEGMENTS[memory.ctypes.data]

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(name)

    assert mappings() == 2
    del host
    assert mappings() == 1


def test_only_wanted_blocks_are_written() -> None:
    memory = random_memory(NB * BS * HS * 2)
    layout, host = worker([spec((NB, BS, HS))], None, memory)
    before = memory.copy().reshape(NB, -1)
    slot = np.full(layout.object_bytes, 7, np.uint8)
    host.scatter(slot, [np.array([2, 3])], [np.array([1])])
    assert (memory.reshape(NB, -1)[3] == 7).all()
    assert (memory.reshape(NB, -1)[:3] == before[:3]).all()
    host.scatter(slot, [np.array([4, 5])], [np.array([], np.int64)])
    assert (memory.reshape(NB, -1)[4:] == before[4:]).all()


def test_what_means_something_else_has_another_fingerprint() -> None:
    memory = random_memory(1 << 14)
    variants = [
        ([spec((NB, NH, BS, 2 * HS))], "HND", {}),
        ([spec((NB, BS, NH, 2 * HS))], "NHD", {}),
        ([spec((NB, NH, BS, 2 * HS), dtype="bfloat16")], "HND", {}),
        ([spec((NB, NH, BS, HS))], "HND", {}),
        ([spec((NB, NH, BS, 2 * HS))] * 2, "HND", {}),
        ([spec((2, NB, BS, NH, HS))], "NHD", {}),
        ([spec((NB, 2, BS, NH, HS))], "NHD", {}),
        ([spec((NB, NH, BS, 2 * HS))], "HND", {"window": 4}),
        ([spec((NB, NH, BS, 2 * HS))], "HND", {"tokens_per_block": 8}),
    ]
    prints = [worker(s, hint, memory, **group)[0].fingerprint for s, hint, group in variants]
    assert len(set(prints)) == len(variants)


def test_which_layer_is_where_is_identity() -> None:
    memory = random_memory(1 << 14)
    layer = [layer_layout(i, spec((NB, BS, HS)), None, memory.nbytes) for i in range(2)]
    orders = ([(0, 1)], [(1, 0)], [(0,), (1,)], [(1,), (0,)])
    prints = {
        worker_layout(layer, [GroupSpec(g) for g in groups], 2 * BS).fingerprint
        for groups in orders
    }
    assert len(prints) == len(orders)


def test_how_many_blocks_and_where_they_lie_is_no_identity() -> None:
    memory = random_memory(1 << 14)
    one, _ = worker([spec((NB, BS, HS))], None, memory)
    two, _ = worker([spec((NB + 3, BS, HS), (BS * HS + 8, HS, 1), 16)], None, memory)
    assert one.fingerprint == two.fingerprint


def test_the_indexer_plane_is_told_by_its_width() -> None:
    assert detect_format(spec((NB, BS, 132), dtype="uint8"), None).id == 14
    assert detect_format(spec((NB, BS, 132), dtype="float16"), None).id == 3
    for shape in ((NB, BS, 132), (NB, BS, 1, 132), (NB, 1, BS, 132)):
        layer = layer_layout(0, spec(shape, dtype="uint8"), None, 1 << 20)
        assert (layer.format_id, layer.slots) == (14, BS)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (spec((NB, BS, HS), dtype="complex64"), "dtype"),
        (spec((NB, 3, BS, NH, HS)), "no format"),
        (spec((NB, BS)), "no format"),
        (spec((NB, BS, HS), (BS * HS, 1, BS)), "memory order"),
        (spec((NB, BS, HS), (0, HS, 1)), "memory order"),
        (spec((NB, BS, HS), (BS * HS - 1, HS, 1)), "memory order"),
        (spec((NB, 0, HS)), "empty"),
        (spec((NB, BS, HS), offset=1 << 40), "need"),
        (spec((1 << 40, BS, HS)), "need"),
    ],
)
def test_tensors_that_prove_nothing_are_refused(bad: TensorSpec, why: str) -> None:
    with pytest.raises(UnknownLayout, match=why):
        layer_layout(0, bad, None, 1 << 20)


def test_an_unknown_hint_is_refused() -> None:
    with pytest.raises(UnknownLayout, match="kv_layout"):
        detect_format(spec((NB, NH, BS, HS)), "LHBNC")


@pytest.mark.parametrize(
    "group",
    [GroupSpec(()), GroupSpec((1,)), GroupSpec((0, 0)), GroupSpec((0,), tokens_per_block=3)],
)
def test_groups_that_do_not_fit_are_refused(group: GroupSpec) -> None:
    layer = layer_layout(0, spec((NB, BS, HS)), None, 1 << 20)
    with pytest.raises(UnknownLayout):
        worker_layout([layer], [group], chunk_size=8)
