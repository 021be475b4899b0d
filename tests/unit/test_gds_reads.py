"""What GPUs read from files themselves: looked up by its header, held, never in the L1."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import xxhash

from sidecar.cache.entry import Entry
from sidecar.cache.leases import Lookup
from sidecar.gds.file_entry import FileEntry
from sidecar.gds.file_reads import FileReads
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.base import Corrupt
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import OBJECT_BYTES, SPACE, Bench, hash_of

RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES


def path_of(folder: Path, number: int) -> Path:
    digits = hash_of(number).hex()
    return folder / "objects" / space_name(SPACE) / digits[:2] / f"{digits}.kv"


def bench_on(folder: Path, **settings: object) -> Bench:
    """Tiers over files that GPUs may read."""
    files = MovedFiles(str(folder), DirectIO())
    return Bench(files, settings={"for_gpus": True, **settings}).start()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Three objects in files, and nothing in the L1."""
    bench = bench_on(tmp_path)
    entries = bench.store(1, 2, 3)
    bench.settle()
    for entry in entries:
        bench.l1.discard(entry)
    return bench


def look_up(bench: Bench, *numbers: int) -> tuple[int, Lookup]:
    """Hits of a worker that reads files, and the lookup, which holds them."""
    request = f"r{len(bench.results)}"
    lookup = bench.begin(request, *numbers, source=reads(bench))
    bench.run_until(lambda: request in bench.results)
    return bench.results[request], lookup


def read(*entries: Entry, fails: bool = False) -> None:
    """A GPU has read these, or could not."""
    for entry in entries:
        entry.space.holds.pin(entry)
        entry.failed = entry.failed or fails
        entry.space.holds.unpin(entry)


def promised(bench: Bench, lookup: Lookup, number: int, *before: int) -> Entry | None:
    """What a worker may read of an object whose sequence begins with those `before` it."""
    hashes = [hash_of(n) for n in (*before, number)]
    chunks = range(len(before), len(hashes))
    (found,) = bench.leases.promised(lookup.request_id, lookup.scope, hashes, chunks, SPACE)
    return found


def reads(bench: Bench) -> FileReads:
    assert bench.gds is not None
    return bench.gds.reads


def held(lookup: Lookup) -> list[Entry]:
    return [entry for (entry,) in lookup.objects[0]]


def test_a_lookup_reads_headers_only(bench: Bench, tmp_path: Path) -> None:
    hits, lookup = look_up(bench, 1, 2, 3, 4)
    assert hits == 3 and bench.l1.objects == bench.l1.writing == bench.l1.used_bytes == 0
    for number, entry in zip((1, 2, 3), held(lookup), strict=True):
        assert isinstance(entry, FileEntry) and entry.file is not None
        path, offset, digest = entry.file
        assert Path(path) == path_of(tmp_path, number)
        data = Path(path).read_bytes()[offset : offset + entry.size]
        assert data == bytes([number]) * OBJECT_BYTES
        assert digest == xxhash.xxh3_128_digest(data)
        assert promised(bench, lookup, number, *range(1, number)) is entry
    assert bench.tiers.loads.in_flight(bench.tiers.backends[0]) == (0, 0)
    bench.leases.end(lookup)
    assert reads(bench).held == bench.leases.live == 0
    assert promised(bench, lookup, 1) is None
    assert not bench.tiers.backends[0].busy()


def test_what_the_l1_has_is_not_read(bench: Bench) -> None:
    bench.store(2)
    hits, lookup = look_up(bench, 1, 2, 3)
    assert hits == 3
    assert [isinstance(entry, FileEntry) for entry in held(lookup)] == [True, False, True]
    bench.leases.end(lookup)
    assert bench.l1.held == reads(bench).held == 0


def test_two_lookups_hold_the_same(bench: Bench) -> None:
    (_, first), (hits, second) = look_up(bench, 1, 2), look_up(bench, 1, 2, 3)
    assert hits == 3 and held(second)[:2] == held(first)
    bench.leases.end(first)
    assert promised(bench, second, 1) is held(second)[0]
    bench.leases.end(second)
    assert bench.l1.held == reads(bench).held == 0


@pytest.mark.parametrize("place", [0, 8, 20, 60, HEADER_BYTES - 1])
def test_a_flipped_byte_of_a_header_is_a_miss(bench: Bench, tmp_path: Path, place: int) -> None:
    path = path_of(tmp_path, 2)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    hits, lookup = look_up(bench, 1, 2, 3)
    assert hits == 1
    bench.leases.end(lookup)
    bench.run_until(lambda: not path.exists())
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_a_file_that_is_gone_or_cut_is_a_miss(bench: Bench, tmp_path: Path) -> None:
    path_of(tmp_path, 1).unlink()
    assert look_up(bench, 1)[0] == 0
    catalog = bench.tiers.backends[0].catalog
    assert ObjectName(space_name(SPACE), hash_of(1)) not in catalog
    with path_of(tmp_path, 2).open("r+b") as file:
        file.truncate(RECORD_BYTES - 4096)
    assert look_up(bench, 2, 3)[0] == 0
    assert bench.l1.held == reads(bench).held == 0


def test_what_a_gpu_could_not_read_comes_through_the_l1(bench: Bench) -> None:
    """There its checksum tells what is wrong, if anything is."""
    _, lookup = look_up(bench, 1, 2)
    read(*held(lookup), fails=True)
    assert promised(bench, lookup, 1) is held(lookup)[0]
    hits, again = look_up(bench, 1, 2, 3)
    assert hits == 3
    assert [isinstance(entry, FileEntry) for entry in held(again)] == [False, False, True]
    assert bench.count("l2_prefetch_failure_chunks", "gpu_read") == 2
    bench.leases.end(lookup)
    bench.leases.end(again)
    bench.l1.clear(force=True)
    hits, lookup = look_up(bench, 1, 2, 3)
    assert hits == 3 and all(isinstance(e, FileEntry) for e in held(lookup)), "they were good"


def test_a_worker_that_leaves_spoils_nothing_for_others(bench: Bench) -> None:
    """Its load fails, but not because of the files."""
    (_, first), (_, second) = look_up(bench, 1, 2), look_up(bench, 1, 2)
    read(*held(first))
    bench.leases.end(first)
    assert promised(bench, second, 1) is held(second)[0]
    assert all(isinstance(entry, FileEntry) for entry in held(look_up(bench, 1, 2)[1]))


def test_what_lacks_blocks_comes_through_the_l1(bench: Bench) -> None:
    """There a store of a fuller object takes its place."""
    entry = bench.l1.reserve(SPACE, hash_of(9), OBJECT_BYTES, frozenset({1}))
    assert entry is not None
    bench.l1.commit(entry)
    bench.tiers.stored([entry])
    bench.settle()
    bench.l1.discard(entry)
    assert look_up(bench, 9)[0] == 0
    hits, lookup = look_up(bench, 9)
    assert hits == 1 and not isinstance(held(lookup)[0], FileEntry)


def test_headers_that_nobody_waits_for_are_not_read(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_on(tmp_path, num_workers=1)
    numbers = range(1, 15)
    entries = bench.store(*numbers)
    bench.settle()
    bench.l1.clear(force=True)
    read, peek = [], MovedFiles.peek

    def counted(self: MovedFiles, name: ObjectName, size: int) -> tuple[str, bytes]:
        read.append(name)
        return peek(self, name, size)

    monkeypatch.setattr(MovedFiles, "peek", counted)
    lookup = bench.begin("r", *numbers, source=reads(bench))
    bench.leases.end(lookup)
    gate.set()
    bench.run_until(lambda: not bench.tiers.backends[0].busy())
    assert len(read) <= bench.tiers.backends[0].read_slots < len(entries)


def test_what_an_old_header_says_is_not_held_against_a_new_file(
    bench: Bench, tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: MovedFiles, name: ObjectName, size: int) -> tuple[str, bytes]:
        gate.wait(20)
        raise Corrupt("magic")

    monkeypatch.setattr(MovedFiles, "peek", late)
    bench.begin("r", 1, source=reads(bench))
    bench.tiers.backends[0].catalog.distrust(ObjectName(space_name(SPACE), hash_of(1)))
    bench.store(1)
    bench.settle()
    gate.set()
    bench.run_until(lambda: bench.results == {"r": 0})
    assert path_of(tmp_path, 1).exists()
    assert not list((tmp_path / "quarantine").iterdir())


def test_what_is_deleted_is_not_found_though_somebody_holds_it(bench: Bench) -> None:
    _, lookup = look_up(bench, 1)
    bench.tiers.backends[0].delete([ObjectName(space_name(SPACE), hash_of(1))])
    assert look_up(bench, 1)[0] == 0
    bench.leases.end(lookup)


def test_what_is_held_is_not_evicted(tmp_path: Path) -> None:
    bench = bench_on(tmp_path, max_capacity_gb=2 * RECORD_BYTES / 2**30, num_workers=2)
    for entry in bench.store(1, 2):
        bench.settle()
        bench.l1.discard(entry)
    _, lookup = look_up(bench, 1)
    bench.store(3, 4)
    bench.settle()
    assert path_of(tmp_path, 1).exists()
    bench.run_until(lambda: not path_of(tmp_path, 2).exists())
    bench.leases.end(lookup)
    bench.store(5, 6)
    bench.settle()
    bench.run_until(lambda: not path_of(tmp_path, 1).exists())


def test_a_clear_forgets_them(bench: Bench) -> None:
    _, lookup = look_up(bench, 1)
    bench.tiers.clear()
    assert promised(bench, lookup, 1) is None
    bench.leases.end(lookup)
    assert look_up(bench, 1)[0] == 0 and bench.l1.held == reads(bench).held == 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No header is read before it is set."""
    gate, peek = threading.Event(), MovedFiles.peek

    def slow(self: MovedFiles, name: ObjectName, size: int) -> tuple[str, bytes]:
        gate.wait(20)
        return peek(self, name, size)

    monkeypatch.setattr(MovedFiles, "peek", slow)
    return gate


def test_a_clear_overtakes_a_header(bench: Bench, gate: threading.Event) -> None:
    lookup = bench.begin("r", 1, source=reads(bench))
    bench.tiers.clear()
    bench.run_until(lambda: bench.results == {"r": 0})
    gate.set()
    bench.run_until(lambda: not bench.tiers.backends[0].busy())
    assert promised(bench, lookup, 1) is None and reads(bench).held == 0


def test_a_backend_that_hangs_is_a_miss(tmp_path: Path, gate: threading.Event) -> None:
    bench = bench_on(tmp_path, timeout_seconds=0.2)
    (entry,) = bench.store(1)
    bench.settle()
    bench.l1.discard(entry)
    bench.begin("r", 1, source=reads(bench))

    def missed() -> bool:
        bench.tick()
        return bench.results == {"r": 0}

    bench.run_until(missed)
    gate.set()
    assert bench.count("l2_timeouts") == 1
