"""Objects that GPUs write to files themselves, from a claim to the object that is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.cache.entry import Entry
from sidecar.tiers.adapters.fs import DirectIO
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES
from tests.support.gds_stores import RECORD_BYTES, SKIP_L1, Site, write
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, SPACE, Bench, Memory, hash_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_is_published_is_an_object_like_any_other(site: Site, tmp_path: Path) -> None:
    entries = site.begin(1, 2)
    assert not site.has(1) and site.backend.catalog.reserved == 2 * RECORD_BYTES
    for entry in entries:
        assert entry.file is not None and entry.file.offset == HEADER_BYTES
        assert os.stat(entry.file.path).st_size == RECORD_BYTES
        assert os.stat(entry.file.path).st_blocks * 512 >= RECORD_BYTES
    write(*entries)
    settled: list[Entry] = []
    for entry in entries:
        assert entry.settled is not None
        site.bench.flows.when(entry.settled, lambda entry=entry: settled.append(entry))
    site.stores.publish(entries)
    site.turn_until(lambda: len(settled) == 2)
    assert site.has(1) and site.has(2)
    site.expect_nothing_left()
    assert site.bench.lookup(1, 2, 3) == 2, "through the L1, where each byte is checked"


def test_before_it_is_known_how_full_the_files_are_all_go_through_the_l1(tmp_path: Path) -> None:
    site = Site(tmp_path, scanned=False, max_capacity_gb=1)
    assert site.claim(1) is None


def test_what_is_there_or_on_its_way_is_not_stored_again(site: Site) -> None:
    (entry,) = site.begin(1)
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) == (entry, False)
    write(entry)
    site.stores.publish([entry])
    site.turn_until(lambda: site.has(1))
    assert site.stores.claim(SPACE, hash_of(1), OBJECT_BYTES) == (None, False)
    site.backend.catalog.distrust(ObjectName(space_name(SPACE), hash_of(1)))
    site.store(1)
    assert site.bench.lookup(1) == 1


@pytest.mark.parametrize(
    "given",
    [{"policy": DEFAULTS}, {"second": True}, {"shared": True}],
    ids=["kept in the L1", "two adapters", "shared"],
)
def test_where_files_are_not_all_objects_go_through_the_l1(
    tmp_path: Path, given: dict[str, object]
) -> None:
    files = MovedFiles(str(tmp_path), DirectIO(), shared=bool(given.get("shared")))
    adapters = [files, *([Memory()] if given.get("second") else [])]
    policy = given.get("policy", SKIP_L1)
    bench = Bench(*adapters, policy=policy, settings={"for_gpus": True})  # type: ignore[arg-type]
    assert bench.gds is not None and bench.gds.stores is None


def test_sizes_that_gpus_cannot_sum_go_through_the_l1(site: Site) -> None:
    for size in (240, 4097):
        assert site.stores.claim(SPACE, hash_of(1), size) is None
