"""One contract, every adapter: what is stored comes back, whole, under its name, or not at all.

Each adapter is built from the JSON that a user writes, over the real server it is for.
"""

from __future__ import annotations

import itertools
import mmap
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sidecar.cache.keys import SpaceKey
from sidecar.tiers.base import Adapter, Bytes, Corrupt, Missing, TierError
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import verify
from tests.conformance.adapter_cases import (
    CASES,
    MIB,
    PAGE,
    QUARANTINED,
    Case,
    fill,
    names,
    opened,
    outcome,
    sealed,
    space_of,
)
from tests.support.server import wait_until

_labels = itertools.count()
MARKS = ("g20261130T101500-0123456789ab", "g20261130T101501-ba9876543210")


@dataclass
class Backend:
    """An open adapter, and the arena that it was opened on."""

    case: Case
    place: Any
    adapter: Adapter
    arena: Bytes

    def at(self, offset: int, size: int) -> Bytes:
        return self.arena[offset : offset + size]


@pytest.fixture(scope="module")
def arena() -> Bytes:
    """64 MiB that begin on a page."""
    return np.frombuffer(mmap.mmap(-1, 64 * MIB), np.uint8)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def backend(request: pytest.FixtureRequest, arena: Bytes) -> Iterator[Backend]:
    """One server and one adapter for all tests of a case."""
    case: Case = request.param
    with case.server() as place, opened(case.spec(place, "tests"), arena) as adapter:
        yield Backend(case, place, adapter, arena)


@pytest.fixture
def label() -> str:
    """Names that no other test uses are made of this."""
    return f"test {next(_labels)}"


def needs(ability: bool, what: str) -> None:
    if not ability:
        pytest.skip(f"this backend cannot {what}")


@pytest.mark.parametrize("size", [PAGE, 3 * PAGE, MIB + PAGE, 8 * MIB, 12 * MIB + PAGE])
def test_bytes_come_back_to_another_place(backend: Backend, label: str, size: int) -> None:
    """All of them, and not one beyond."""
    [name] = names(label, 1)
    source, around = backend.at(4 * MIB, size), backend.at(32 * MIB, size + 2 * PAGE)
    fill(source, size)
    around[:] = 0xEE
    original = source.copy()
    backend.adapter.store(name, source)
    source[:] = 0
    backend.adapter.load(name, around[PAGE:-PAGE])
    assert np.array_equal(around[PAGE:-PAGE], original)
    assert (around[:PAGE] == 0xEE).all() and (around[-PAGE:] == 0xEE).all()


def test_a_second_store(backend: Backend, label: str) -> None:
    """It replaces the first, or leaves it: the record is one of the two and not a mixture."""
    [name] = names(label, 1)
    first, second, loaded = (backend.at(at * MIB, 2 * MIB) for at in (0, 8, 16))
    fill(first, 1)
    fill(second, 2)
    backend.adapter.store(name, first)
    backend.adapter.store(name, second)
    backend.adapter.load(name, loaded)
    assert np.array_equal(loaded, second if backend.case.overwrites else first)


def test_what_is_not_there(backend: Backend, label: str) -> None:
    absent, present = names(label, 2)
    record = backend.at(0, PAGE)
    backend.adapter.store(present, record)
    assert backend.adapter.find([absent]) == [None]
    with pytest.raises(Missing):
        backend.adapter.load(absent, record)
    backend.adapter.delete([absent])


@pytest.mark.parametrize("pages", [2, 6], ids=["shorter", "longer"])
def test_an_object_of_another_length(backend: Backend, label: str, pages: int) -> None:
    """Refused by the backend that knows, and by its header otherwise: nothing stale passes."""
    space, [name] = space_of(label), names(label, 1)
    stored, place = backend.at(0, pages * PAGE), backend.at(MIB, 4 * PAGE)
    sealed(stored, space, name)
    backend.adapter.store(name, stored)
    length = sealed(place, space, name, seed=1)  # what another object left in this place
    if backend.case.knows_length:
        with pytest.raises(Corrupt, match="length"):
            backend.adapter.load(name, place)
        return
    with pytest.raises(Corrupt):
        backend.adapter.load(name, place)
        verify(place, space, name.hash, length)


def test_a_truncated_object(backend: Backend, label: str) -> None:
    """Its header is right, and the rest of the place holds what was there before."""
    space, [name] = space_of(label), names(label, 1)
    whole, place = backend.at(0, 4 * PAGE), backend.at(MIB, 4 * PAGE)
    length = sealed(whole, space, name)
    backend.adapter.store(name, whole[: 3 * PAGE])
    fill(place, 1)
    with pytest.raises(Corrupt):
        backend.adapter.load(name, place)
        verify(place, space, name.hash, length)


def test_find_on_a_mix(backend: Backend, label: str) -> None:
    all_names = names(label, 40)
    for number, name in enumerate(all_names):
        if number % 3:
            backend.adapter.store(name, backend.at(0, (1 + number % 5) * PAGE))
    for number, size in enumerate(backend.adapter.find(all_names)):
        if not number % 3:
            assert size is None
        elif backend.case.knows_sizes:
            assert size == (1 + number % 5) * PAGE
        else:
            assert size == 0


def test_what_is_deleted_is_gone(backend: Backend, label: str) -> None:
    gone, kept = names(label, 2)
    for name in (gone, kept):
        backend.adapter.store(name, backend.at(0, PAGE))
    backend.adapter.delete([gone])
    assert [size is None for size in backend.adapter.find([gone, kept])] == [True, False]
    with pytest.raises(Missing):
        backend.adapter.load(gone, backend.at(0, PAGE))
    backend.adapter.delete([])
    backend.adapter.store(gone, backend.at(0, PAGE))
    assert backend.adapter.find([gone]) != [None]


def test_epochs_are_apart(backend: Backend, label: str) -> None:
    """One name in two of them is two records."""
    [name] = names(label, 1)
    earlier, later = (name.in_epoch(tag) for tag in MARKS)
    first, second, loaded = (backend.at(at * MIB, PAGE) for at in range(3))
    fill(first, 1)
    fill(second, 2)
    backend.adapter.store(earlier, first)
    assert [size is None for size in backend.adapter.find([earlier, later, name])] == [
        False, True, True,
    ]  # fmt: skip
    backend.adapter.store(later, second)
    backend.adapter.load(earlier, loaded)
    assert np.array_equal(loaded, first)
    # Mooncake keeps what has just been read, and says so.
    wait_until(lambda: outcome(lambda: backend.adapter.delete([earlier])) is None, "deleted")
    assert [size is None for size in backend.adapter.find([earlier, later])] == [True, False]


def test_the_mark_is_what_was_written_last(backend: Backend, label: str) -> None:
    """By whoever it was. It is no record, and takes no part in a scan."""
    spec = backend.case.spec(backend.place, f"mark-{uuid.uuid4().hex}")
    with opened(spec, backend.arena) as adapter:
        if backend.case.name != "mooncake":  # which has one pool, and so one mark
            assert not adapter.read_mark()
        for mark in (*MARKS, "+".join(MARKS)):
            adapter.write_mark(mark)
            assert adapter.read_mark() == mark
        assert list(itertools.chain(*adapter.scan())) == []
    if backend.case.survives:
        with opened(spec, backend.arena) as adapter:
            assert adapter.read_mark() == mark


def test_a_scan_lists_what_is_there(backend: Backend, label: str) -> None:
    needs(backend.case.scans, "list its objects")
    spec = backend.case.spec(backend.place, f"scan-{uuid.uuid4().hex}")
    all_names = names(label, 30)
    with opened(spec, backend.arena) as adapter:
        assert list(itertools.chain(*adapter.scan())) == []
        for number, name in enumerate(all_names):
            adapter.store(name, backend.at(0, (1 + number % 3) * PAGE))
        adapter.delete(all_names[:4])
        adapter.set_aside(all_names[4], "checksum")
        of_a_epoch = names(label, 1)[0].in_epoch(MARKS[0])
        adapter.store(of_a_epoch, backend.at(0, PAGE))
        found = list(itertools.chain(*adapter.scan()))
    wanted = [(name, (1 + number % 3) * PAGE) for number, name in enumerate(all_names)]
    assert len(found) == len(wanted[5:]) + 1
    assert {f.name: f.size for f in found} == {**dict(wanted[5:]), of_a_epoch: PAGE}


def test_a_bad_object_is_set_aside(backend: Backend, label: str) -> None:
    [name] = names(label, 1)
    record = backend.at(0, PAGE)
    backend.adapter.store(name, record)
    assert backend.adapter.set_aside(name, "checksum") is backend.case.keeps_bad
    assert backend.adapter.find([name]) == [None]
    with pytest.raises(Missing):
        backend.adapter.load(name, record)
    assert backend.adapter.set_aside(name, "checksum") is False
    backend.adapter.store(name, record)
    backend.adapter.load(name, record)


def test_few_bad_objects_are_kept(backend: Backend, label: str) -> None:
    needs(backend.case.keeps_bad, "keep bad objects")
    token = f"bad-{uuid.uuid4().hex}"
    with opened(backend.case.spec(backend.place, token), backend.arena) as adapter:
        for name in names(label, QUARANTINED + 8):
            adapter.store(name, backend.at(0, PAGE))
            assert adapter.set_aside(name, "header")
        assert 0 < kept_bad(backend, adapter, token) <= QUARANTINED


def kept_bad(backend: Backend, adapter: Any, token: str) -> int:
    """How many objects lie in the backend's quarantine, seen past the adapter."""
    match backend.case.name:
        case "fs" | "nixl-posix":
            return len(list((backend.place / token / "quarantine").iterdir()))
        case "s3-moto":
            obstore = pytest.importorskip("obstore")
            batches = obstore.list(adapter._store, f"{token}-quarantine")
            return sum(len(batch) for batch in batches)
        case "resp":
            return len(list(adapter._client.scan_iter(f"{token}-quarantine/*")))
    inner = adapter if backend.case.name == "mock" else adapter._inner
    return len(inner._quarantine)


ODD = [
    SpaceKey("org/Modell ü", 1, 0, "", bytes(16)),
    SpaceKey("org/Modell ü", 1, 0, "two  words ", bytes(16)),
    SpaceKey("org/Modell ü", 8, 7, "../../etc?a=b&c#d%2F+*[x]\\", bytes(16)),
    SpaceKey("日本語 🙂", 1, 0, "\t\n\x00'\"", b"\xff" * 16),
    SpaceKey("m" * 128, 1, 0, "s" * 128, bytes(16)),
    SpaceKey("ü" * 128, 1, 0, "🙂" * 128, bytes(16)),
    SpaceKey("M" * 128, 1, 0, "s" * 128, bytes(16)),
]


def test_odd_names(backend: Backend) -> None:
    """Each is its own: none is cut, folded or unquoted into another."""
    odd = [ObjectName(space_name(space), b"\xab" * 32) for space in ODD]
    assert len(set(odd)) == len(ODD)
    assert backend.adapter.find(odd) == [None] * len(odd)
    for number, name in enumerate(odd):
        backend.at(0, PAGE)[:] = number
        backend.adapter.store(name, backend.at(0, PAGE))
    for number, name in enumerate(odd):
        backend.adapter.load(name, backend.at(MIB, PAGE))
        assert (backend.at(MIB, PAGE) == number).all()
    assert None not in backend.adapter.find(odd)


def test_several_threads_at_once(backend: Backend, label: str) -> None:
    """Each with its own objects and its own part of the arena."""
    size = MIB // 4
    groups = [names(f"{label} {thread}", 20) for thread in range(4)]

    def work(thread: int) -> bool:
        mine = backend.at(thread * 16 * MIB, 16 * MIB)
        for number, name in enumerate(groups[thread]):
            fill(mine[:size], thread * 100 + number)
            backend.adapter.store(name, mine[:size])
        for number, name in enumerate(groups[thread]):
            fill(mine[:size], thread * 100 + number)
            backend.adapter.load(name, mine[MIB : MIB + size])
            if not np.array_equal(mine[:size], mine[MIB : MIB + size]):
                return False
        return None not in backend.adapter.find(groups[thread])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


def test_a_record_proves_itself(backend: Backend, label: str) -> None:
    space, [name] = space_of(label), names(label, 1)
    record, place = backend.at(0, 3 * MIB), backend.at(8 * MIB, 3 * MIB)
    length = sealed(record, space, name)
    backend.adapter.store(name, record)
    place[:] = 0
    backend.adapter.load(name, place)
    assert verify(place, space, name.hash, length) == {3}


@pytest.mark.parametrize("byte", [20, 4096, 4096 + 5000])
def test_a_flipped_bit_is_seen(backend: Backend, label: str, byte: int) -> None:
    space, [name] = space_of(label), names(label, 1)
    record, place = backend.at(0, 4 * PAGE), backend.at(MIB, 4 * PAGE)
    length = sealed(record, space, name)
    record[byte] ^= 16
    backend.adapter.store(name, record)
    backend.adapter.load(name, place)
    with pytest.raises(Corrupt):
        verify(place, space, name.hash, length)


def test_what_is_stored_outlives_its_adapter(backend: Backend, label: str) -> None:
    needs(backend.case.survives, "keep anything without its adapter")
    [name] = names(label, 1)
    spec = backend.case.spec(backend.place, f"again-{uuid.uuid4().hex}")
    record, place = backend.at(0, MIB), backend.at(8 * MIB, MIB)
    fill(record, 7)
    with opened(spec, backend.arena) as adapter:
        adapter.store(name, record)
    with opened(spec, backend.arena) as adapter:
        adapter.load(name, place)
    assert np.array_equal(record, place)


def test_room_is_a_number_or_not_known(backend: Backend) -> None:
    room = backend.adapter.room()
    assert room is None or room > 0
    assert issubclass(Missing, TierError)
