"""Objects that GPUs write to files themselves, from a claim to the object that is found."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from sidecar.cache.entry import Entry, State
from sidecar.telemetry.spans import NO_SPAN
from sidecar.tiers import direct_stores
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.files import DirectIO
from sidecar.tiers.base import Bytes
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, Memory, hash_of

RECORD_BYTES = HEADER_BYTES + OBJECT_BYTES
SKIP_L1 = replace(DEFAULTS, skip_l1=True)


class StuckFiles(Files):
    """Calls of `stuck` wait until they are released."""

    stuck = ""

    def __init__(self, base: str) -> None:
        super().__init__(base, DirectIO())
        self.released = threading.Event()

    def new_file(self, size: int) -> str:
        self._wait("new_file")
        return super().new_file(size)

    def keep(self, temp: str, head: bytes, name: ObjectName) -> None:
        self._wait("keep")
        super().keep(temp, head, name)

    def _wait(self, call: str) -> None:
        if self.stuck == call:
            assert self.released.wait(60)


class Site:
    """Tiers over files that GPUs write; the L1 is not to keep what is stored."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.files, self.folder = StuckFiles(str(folder)), folder
        settings = {"for_gpus": True, **settings}
        self.bench = Bench(self.files, policy=SKIP_L1, settings=settings).start()
        self.stores = self.bench.tiers.direct_stores
        (self.lane,) = self.bench.tiers.lanes

    def claim(self, number: int) -> Entry | None:
        """A new object to store, None if it has to go through the L1."""
        claimed = self.stores.claim(SPACE, hash_of(number), OBJECT_BYTES)
        if claimed is None:
            return None
        entry, is_new = claimed
        assert entry is not None and is_new
        entry.on_settled = []
        return entry

    def begin(self, *numbers: int) -> list[Entry]:
        """Objects whose files have been made, as far as that went."""
        entries = [self.claim(number) for number in numbers]
        claimed = [entry for entry in entries if entry is not None]
        prepared: list[bool] = []
        self.stores.prepare(claimed, NO_SPAN, lambda: prepared.append(True))
        self.turn_until(lambda: bool(prepared))
        assert prepared == [True]
        return claimed

    def store(self, *numbers: int) -> list[Entry]:
        """All the way."""
        entries = self.begin(*numbers)
        write(*entries)
        self.stores.publish(entries)
        self.turn_until(lambda: not len(self.stores))
        return entries

    def turn_until(self, condition: Callable[[], bool]) -> None:
        def happened() -> bool:
            self.bench.tiers.tick()
            return condition()

        self.bench.run_until(happened)

    def has(self, number: int) -> bool:
        return ObjectName(space_name(SPACE), hash_of(number)) in self.lane.catalog

    def expect_nothing_left(self) -> None:
        """No store is on its way, and no file of one."""
        temp = self.folder / ".tmp"
        self.turn_until(lambda: not list(temp.iterdir()))
        assert len(self.stores) == self.lane.catalog.reserved == 0

    def counted(self, reason: str) -> int:
        return self.bench.count("l2_dropped_objects", reason)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def write(*entries: Entry) -> None:
    """What a GPU does: all bytes of object n are n."""
    for entry in entries:
        assert entry.file is not None
        data = entry.hash[-1:] * entry.size
        with open(entry.file.path, "r+b") as file:
            file.seek(entry.file.offset)
            file.write(data)
        entry.file = entry.file._replace(digest=xxhash.xxh3_128_digest(data))


def test_what_is_published_is_an_object_like_any_other(site: Site, tmp_path: Path) -> None:
    entries = site.begin(1, 2)
    assert not site.has(1) and site.lane.catalog.reserved == 2 * RECORD_BYTES
    for entry in entries:
        assert entry.file is not None and entry.file.offset == HEADER_BYTES
        assert os.stat(entry.file.path).st_size == RECORD_BYTES
        assert os.stat(entry.file.path).st_blocks * 512 >= RECORD_BYTES
    write(*entries)
    settled: list[Entry] = []
    for entry in entries:
        assert entry.on_settled is not None
        entry.on_settled.append(lambda entry=entry: settled.append(entry))
    site.stores.publish(entries)
    site.turn_until(lambda: len(settled) == 2)
    assert site.has(1) and site.has(2)
    site.expect_nothing_left()
    assert site.bench.lookup(1, 2, 3) == 2, "through the L1, where each byte is checked"
    again = Bench(Files(str(tmp_path / "2"), DirectIO()))
    assert again.tiers.direct_stores.claim(SPACE, hash_of(1), OBJECT_BYTES) is None


def test_what_is_there_or_on_its_way_is_not_stored_again(site: Site) -> None:
    (entry,) = site.begin(1)
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) == (entry, False)
    write(entry)
    site.stores.publish([entry])
    site.turn_until(lambda: site.has(1))
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) == (None, False)
    site.lane.catalog.distrust(ObjectName(space_name(SPACE), hash_of(1)))
    site.store(1)
    assert site.bench.lookup(1) == 1


@pytest.mark.parametrize(
    "given",
    [{"policy": DEFAULTS}, {"second": True}, {"settings": {}}, {"shared": True}],
    ids=["kept in the L1", "two adapters", "another backend", "shared"],
)
def test_where_files_are_not_all_objects_go_through_the_l1(
    tmp_path: Path, given: dict[str, object]
) -> None:
    files = Files(str(tmp_path), DirectIO(), shared=bool(given.get("shared")))
    adapters = [files, *([Memory()] if given.get("second") else [])]
    settings = given.get("settings", {"for_gpus": True})
    policy = given.get("policy", SKIP_L1)
    bench = Bench(*adapters, policy=policy, settings=settings).start()  # type: ignore[arg-type]
    assert bench.tiers.direct_stores.claim(SPACE, hash_of(1), OBJECT_BYTES) is None


def test_sizes_that_gpus_cannot_sum_go_through_the_l1(site: Site) -> None:
    for size in (240, 4097):
        assert site.stores.claim(SPACE, hash_of(1), size) is None


def test_what_a_gpu_could_not_write_is_not_there(site: Site) -> None:
    """All go through the L1 for a while."""
    entries = site.begin(1, 2)
    for entry in entries:
        entry.file_failed = True
    site.stores.give_up(entries)
    assert [entry.state for entry in entries] == [State.GONE] * 2
    assert not site.has(1) and site.counted("gpu_write") == 2
    assert site.claim(3) is None
    site.expect_nothing_left()


def test_gpus_are_asked_again_after_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_stores, "_AGAIN_SECONDS", 0.0)
    (entry,) = site.begin(1)
    entry.file_failed = True
    site.stores.give_up([entry])
    site.store(1)
    assert site.has(1)


def test_what_a_worker_has_not_finished_is_given_up(site: Site) -> None:
    """That says nothing of its GPU."""
    entries = site.begin(1, 2)
    site.stores.give_up(entries)
    site.expect_nothing_left()
    assert not site.has(1) and site.counted("gpu_write") == 0
    site.store(1)


def test_a_disk_without_room_gets_no_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller goes through the L1 then; something older gives way."""
    site.store(1)
    monkeypatch.setattr(site.files, "_floor", 1 << 60)
    (entry,) = site.begin(2)
    assert entry.file is None
    site.stores.give_up([entry])
    site.turn_until(lambda: not site.has(1))
    site.expect_nothing_left()
    monkeypatch.setattr(site.files, "_floor", 0)
    site.store(2)


def test_older_objects_make_room(tmp_path: Path) -> None:
    site = Site(tmp_path, max_capacity_gb=3 * RECORD_BYTES / 2**30)
    for number in range(1, 6):
        site.store(number)
        assert site.lane.catalog.used_bytes <= 3 * RECORD_BYTES
    assert [number for number in range(1, 6) if site.has(number)] == [3, 4, 5]
    site.begin(6, 7, 8)
    assert site.claim(9) is None, "nothing more fits"


@pytest.mark.parametrize("when", ["written", "kept"])
def test_a_clear_comes_before_what_is_on_its_way(site: Site, when: str) -> None:
    entries = site.begin(1)
    write(*entries)
    if when == "kept":
        site.files.stuck = "keep"
        site.stores.publish(entries)
    site.bench.tiers.clear(owned_only=False)
    if when == "written":
        site.stores.publish(entries)
    site.files.released.set()
    site.turn_until(lambda: not len(site.stores))
    site.turn_until(lambda: not list(site.folder.rglob("*.kv")))
    assert not site.has(1) and site.counted("cleared") == 1
    site.expect_nothing_left()


@pytest.mark.parametrize("threads", [1, 8])
def test_a_stuck_disk_does_not_hold_a_store_before_its_copy(tmp_path: Path, threads: int) -> None:
    """Nor do threads that are all taken."""
    site = Site(tmp_path, timeout_seconds=0.1, num_workers=threads)
    site.files.stuck = "new_file"
    entries = site.begin(1, 2, 3)
    assert [entry.file for entry in entries] == [None] * 3
    site.stores.give_up(entries)
    site.files.released.set()
    site.expect_nothing_left()


@pytest.mark.parametrize("threads", [1, 8])
def test_a_stuck_disk_does_not_hold_a_store_after_its_copy(tmp_path: Path, threads: int) -> None:
    """What is complete in the end is there, all the same."""
    site = Site(tmp_path, timeout_seconds=0.5, num_workers=threads)
    entries = site.begin(1, 2, 3)
    write(*entries)
    settled: list[bool] = []
    for entry in entries:
        entry.on_settled = [lambda: settled.append(True)]
    site.files.stuck = "keep"
    site.stores.publish(entries)
    site.turn_until(lambda: len(settled) == 3)
    assert len(site.stores) == 3 and not site.has(1)
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) == (entries[0], False)
    site.files.released.set()
    site.turn_until(lambda: site.has(1) and site.has(2) and site.has(3))
    site.expect_nothing_left()
    assert settled == [True] * 3


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_file_that_cannot_be_kept_leaves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    entries = site.begin(1)
    write(*entries)
    monkeypatch.setattr(site.files, "_publish", fail)
    site.stores.publish(entries)
    site.turn_until(lambda: not len(site.stores))
    assert not site.has(1)
    assert site.counted("no_space" if code == errno.ENOSPC else "error") == 1
    site.expect_nothing_left()


def test_a_write_from_the_l1_of_the_same_object_waits(site: Site) -> None:
    """One changes what is under a name at a time."""
    (entry,) = site.begin(1)
    site.bench.store(1)
    site.bench.tiers.tick()
    assert site.bench.tiers.writes.in_flight(site.lane) == 0
    write(entry)
    site.stores.publish([entry])
    site.bench.settle()
    assert site.bench.lookup(1) == 1
    site.expect_nothing_left()


def test_a_wrong_digest_is_found_out(site: Site) -> None:
    (entry,) = site.begin(1)
    write(entry)
    assert entry.file is not None
    entry.file = entry.file._replace(digest=bytes(16))
    site.stores.publish([entry])
    site.turn_until(lambda: site.has(1))
    assert site.bench.lookup(1) == 0
    assert site.bench.count("l2_corrupt_objects", "checksum") == 1


def test_what_a_killed_server_was_writing_is_removed(site: Site, tmp_path: Path) -> None:
    write(*site.begin(1))
    assert len(list((tmp_path / ".tmp").iterdir())) == 1
    site.files.close()
    arena: Bytes = site.bench.arena
    Files(str(tmp_path), DirectIO()).open(arena)
    assert not list((tmp_path / ".tmp").iterdir()) and not list(tmp_path.rglob("*.kv"))


def test_a_stop_waits_for_what_is_being_written(site: Site) -> None:
    entries = site.begin(1)
    assert site.bench.tiers.draining
    site.stores.give_up(entries)
    assert not site.bench.tiers.draining
