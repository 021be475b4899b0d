"""What goes wrong with objects that GPUs write to files themselves: GPUs, disks, clears."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sidecar.cache.entry import State
from sidecar.gds import file_stores
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.fs import DirectIO
from sidecar.tiers.base import Bytes
from tests.support.disks import records
from tests.support.gds_stores import RECORD_BYTES, Site, write
from tests.support.tiers import OBJECT_BYTES, SPACE, hash_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_a_gpu_could_not_write_is_not_there(site: Site) -> None:
    """All go through the L1 for a while."""
    entries = site.begin(1, 2)
    for entry in entries:
        entry.failed = True
    site.stores.give_up(entries)
    assert [entry.state for entry in entries] == [State.GONE] * 2
    assert not site.has(1) and site.counted("gpu_write") == 2
    assert site.claim(3) is None
    site.expect_nothing_left()


def test_gpus_are_asked_again_after_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_stores, "_AGAIN_SECONDS", 0.0)
    (entry,) = site.begin(1)
    entry.failed = True
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
        assert site.backend.catalog.used_bytes <= 3 * RECORD_BYTES
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
    site.bench.tiers.clear()
    if when == "written":
        site.stores.publish(entries)
    site.files.released.set()
    site.turn_until(lambda: not len(site.stores))
    site.turn_until(lambda: not records(site.folder))
    assert not site.has(1) and site.counted("cleared") == 1
    site.expect_nothing_left()


def test_what_is_stored_again_after_a_clear_is_not_what_the_clear_takes(site: Site) -> None:
    (entry,) = site.begin(1)
    write(entry)
    site.bench.tiers.clear()
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) is None, "through the L1"


def test_a_file_system_without_fallocate(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """There libc writes a byte to each block, which O_DIRECT would refuse."""

    def write_each_block(fd: int, offset: int, length: int) -> None:
        for at in range(offset, offset + length, 4096):
            os.pwrite(fd, bytes(1), at)

    monkeypatch.setattr(os, "posix_fallocate", write_each_block)
    site.store(1, 2, 3)
    assert site.has(1) and site.has(2) and site.has(3)


def test_a_full_disk_is_given_way_to_once_for_a_store(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each of its chunks: so much would be lost for nothing."""
    site.store(*range(1, 41))
    monkeypatch.setattr(site.files, "_floor", 1 << 60)
    site.stores.give_up(site.begin(*range(41, 53)))
    assert [number for number in range(1, 41) if site.has(number)] == list(range(1, 33))


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
        assert entry.settled is not None
        site.bench.flows.when(entry.settled, lambda: settled.append(True))
    site.files.stuck = "keep"
    site.stores.publish(entries)
    site.turn_until(lambda: len(settled) == 3)
    assert len(site.stores) == 3 and not site.has(1)
    if threads == 1:
        # A disk that is cut off is not waited for.
        site.turn_until(lambda: site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) is None)
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
    site.bench.tick()
    assert site.backend.catalog.reserved == RECORD_BYTES, "that of the GPU alone"
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
