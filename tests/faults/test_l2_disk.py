"""What can be wrong with an L2 directory, with a whole server over it.

Nothing bad is ever a hit; it is counted, put aside, and replaced by the next store.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sidecar.cache.keys import chunk_hashes
from tests.support.l2 import (
    CHUNKS,
    LONG,
    L2Worker,
    adapter_status,
    clear_l1,
    counter,
    fs_flags,
    objects,
    partial_files,
    quarantined,
    wait_counter,
    wait_written,
)
from tests.support.raw import RawClient
from tests.support.server import CHUNK_SIZE, Server, wait_until

OTHER_MODEL = "other-model"
Damage = Callable[[Path, Path], None]


def file_of(directory: Path, number: int, chunk: int, model: str = "l2-model") -> Path:
    """Where the record of a chunk of an `L2Worker`'s sequence is."""
    tokens = [number * 1000 + i for i in range(CHUNKS * CHUNK_SIZE)]
    data = np.array(tokens, ">u4").tobytes()
    digits = chunk_hashes([], data, CHUNK_SIZE, CHUNKS)[chunk].hex()
    (space,) = (directory / "objects").glob(f"{model}@*")
    return space / digits[:2] / f"{digits}.kv"


# --- Damages: of the record of chunk 1, given that of chunk 2 of the same sequence ---


def truncated(file: Path, _: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 4096)


def emptied(file: Path, _: Path) -> None:
    file.write_bytes(b"")


def grown(file: Path, _: Path) -> None:
    with file.open("ab") as handle:
        handle.write(bytes(4096))


def flip(place: int) -> Damage:
    def flipped(file: Path, _: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)

    return flipped


def swapped(file: Path, neighbour: Path) -> None:
    third = file.with_name("third")
    file.rename(third)
    neighbour.rename(file)
    third.rename(neighbour)


def renamed(file: Path, neighbour: Path) -> None:
    shutil.copyfile(neighbour, file)


def of_another_model(file: Path, _: Path) -> None:
    (space,) = file.parents[2].glob(f"{OTHER_MODEL}@*")
    shutil.copyfile(space / file.parent.name / file.name, file)


def of_another_format(file: Path, _: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8] = 99
    file.write_bytes(data)


def garbage(file: Path, _: Path) -> None:
    file.write_bytes(np.random.default_rng(3).bytes(file.stat().st_size))


def a_directory(file: Path, _: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def unreadable(file: Path, _: Path) -> None:
    """A link to itself: as root one may read whatever can be opened at all."""
    file.unlink()
    file.symlink_to(file)


def fifo(file: Path, _: Path) -> None:
    """Who opens it waits for its other end."""
    file.unlink()
    os.mkfifo(file)


def removed(file: Path, _: Path) -> None:
    file.unlink()


class Case(NamedTuple):
    """A damage and the reasons given for it; none where nothing is found to be judged.

    A server that has not known the file does not find what is no file, either.
    """

    damage: Damage
    reasons: set[str]


CASES = {
    "truncated": Case(truncated, {"length"}),
    "emptied": Case(emptied, {"length"}),
    "grown": Case(grown, {"length"}),
    "first bit": Case(flip(0), {"magic"}),
    "header bit": Case(flip(60), {"header"}),
    "body bit": Case(flip(5000), {"checksum"}),
    "swapped": Case(swapped, {"key"}),
    "renamed": Case(renamed, {"key"}),
    "another model": Case(of_another_model, {"key"}),
    "another format": Case(of_another_format, {"version"}),
    "garbage": Case(garbage, {"magic"}),
    "a directory": Case(a_directory, {"type"}),
    "unreadable": Case(unreadable, {"type"}),
    "a FIFO": Case(fifo, {"type"}),
    "removed": Case(removed, set()),
}
NUMBERS = {label: number for number, label in enumerate(CASES)}


class Outcome(NamedTuple):
    """What became of one damage: the hit, the reasons that were counted, and later."""

    hits: int
    reasons: dict[str, int]
    put_aside: int
    healed_hits: int


Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module", params=["while it was down", "while it was up"])
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    """All damages done to one server's directory, each to a sequence of its own."""
    base, down = tmp_path_factory.mktemp("l2"), request.param == "while it was down"
    server = Server(base, *fs_flags(base / "l2", timeout_seconds=60))
    try:
        server.start()
        fill(server, OTHER_MODEL)
        fill(server, "l2-model")
        if down:
            assert server.terminate() == 0
        else:
            clear_l1(server)
        for label, case in CASES.items():
            first, second = (file_of(base / "l2", NUMBERS[label], chunk) for chunk in (1, 2))
            case.damage(first, second)
        if down:
            server.start()
            wait_until(lambda: adapter_status(server)["scanned"], "scanned", LONG)
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            found = {label: observe(server, worker, base / "l2", label) for label in CASES}
            worker.close()
        server.assert_no_leases()
        assert not partial_files(base / "l2")
        yield found
    finally:
        server.stop()


def fill(server: Server, model: str) -> None:
    with RawClient(server.url) as client:
        worker = L2Worker(client, server, model)
        worker.store(*NUMBERS.values())
        worker.close()
    wait_written(server)


def observe(server: Server, worker: L2Worker, directory: Path, label: str) -> Outcome:
    number = NUMBERS[label]
    before, aside = corrupt(server), len(quarantined(directory))
    hits = worker.check(number)
    # Prove that loads are not cut off because of one bad file before the next is looked at.
    wait_until(lambda: breakers_closed(server), "breakers closed", LONG)
    reasons = {r: n - before.get(r, 0) for r, n in corrupt(server).items() if n > before.get(r, 0)}
    if reasons:
        wait_until(lambda: len(quarantined(directory)) > aside, "put aside", LONG)
    put_aside = len(quarantined(directory)) - aside
    worker.store(number)
    wait_written(server)
    clear_l1(server)
    return Outcome(hits, reasons, put_aside, worker.check(number))


def corrupt(server: Server) -> dict[str, int]:
    samples = server.metrics().samples
    name = "lmcache_mp_l2_corrupt_objects_total"
    return {s.labels["reason"]: int(s.value) for s in samples if s.name == name}


def breakers_closed(server: Server) -> bool:
    return bool(adapter_status(server)["is_healthy"])


@pytest.mark.parametrize("label", CASES)
def test_a_damaged_file_is_no_hit(outcomes: Outcomes, label: str) -> None:
    """The prefix before it is. All bytes are checked on the way."""
    assert outcomes[label].hits == 1


@pytest.mark.parametrize("label", CASES)
def test_a_damaged_file_is_counted_and_put_aside(outcomes: Outcomes, label: str) -> None:
    found, expected = outcomes[label].reasons.keys(), CASES[label].reasons
    unseen = [set()] if expected == {"type"} else []
    assert found in [expected, *unseen]
    assert outcomes[label].put_aside >= len(found)


@pytest.mark.parametrize("label", CASES)
def test_a_later_store_replaces_a_damaged_file(outcomes: Outcomes, label: str) -> None:
    assert outcomes[label].healed_hits == CHUNKS


# --- The file system ---


@contextmanager
def tmpfs(directory: Path, size: str) -> Iterator[Path]:
    """A file system of its own."""
    directory.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "none", directory)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def read_only(*directories: Path) -> Iterator[None]:
    """As after an error of the disk: as root one is not stopped by modes."""
    mounted: list[Path] = []
    try:
        for directory in directories:
            mount("--bind", directory, directory)
            mounted.append(directory)
            mount("-o", "remount,bind,ro", directory)
        yield
    finally:
        for directory in mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not permitted: {done.stderr.strip()}")


def test_a_file_system_that_becomes_read_only(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """What is there goes on being served; stores are cut off, and taken up again afterwards."""
    base = tmp_path / "l2"
    server = new_server(*fs_flags(base)).start()
    with RawClient(server.url) as client:
        worker = L2Worker(client, server)
        worker.store(0, 1)
        wait_written(server)
        with read_only(base / "objects", base / ".tmp", base / "quarantine"):
            worker.store(2, 3)
            wait_written(server)
            wait_counter(server, "l2_dropped_objects", 2 * CHUNKS)
            assert counter(server, "l2_errors", cause="EROFS") >= 3
            assert adapter_status(server)["breakers"]["store"]["state"] != "closed"
            clear_l1(server)
            assert worker.check_all(0, 1) == [CHUNKS, CHUNKS]
            assert worker.check_all(2, 3) == [0, 0]
        number = iter(range(4, 30))
        wait_until(lambda: stores_are_kept(server, worker, next(number)), "stores", LONG)
        assert worker.check(0) == CHUNKS
        worker.close()
    server.assert_no_leases()
    assert not partial_files(base)
    assert server.terminate() == 0


def stores_are_kept(server: Server, worker: L2Worker, number: int) -> bool:
    """Whether a sequence that is stored now is kept."""
    time.sleep(0.5)
    before = counter(server, "l2_store_completed_objects")
    worker.store(number)
    wait_written(server)
    return counter(server, "l2_store_completed_objects") >= before + CHUNKS


@pytest.mark.parametrize(("floor", "size"), [(0, "600k"), (0.001, "1600k")], ids=["full", "floor"])
def test_a_full_disk(
    new_server: Callable[..., Server], tmp_path: Path, floor: float, size: str
) -> None:
    """L2 goes on with the newest; nobody notices but the counters."""
    with tmpfs(tmp_path / "disk", size) as disk:
        server = new_server(*fs_flags(disk, min_free_gb=floor)).start()
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            for number in range(30):
                worker.store(number)
                wait_written(server)
            assert counter(server, "l2_dropped_objects", reason="no_space") > 0
            assert counter(server, "l2_evicted_objects") > 0
            assert breakers_closed(server)
            clear_l1(server)
            hits = worker.check_all(*range(30))
            assert hits[0] == 0
            assert sum(hits[20:]) > 0
            if floor:
                # Writers look before they write, each for itself: some records less are free.
                assert shutil.disk_usage(disk).free >= floor * 2**30 - (64 << 10)
            worker.close()
        server.assert_no_leases()
        assert not partial_files(disk)
        wait_until(lambda: counts_what_is_there(server, disk), "accounts in order", LONG)
        assert server.terminate() == 0


def counts_what_is_there(server: Server, directory: Path) -> bool:
    sizes = [path.stat().st_size for path in objects(directory)]
    return bool(adapter_status(server)["used_bytes"] == sum(sizes))


# --- The server's life ---


def test_a_second_server_on_the_same_directory(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    first = new_server(*fs_flags(tmp_path / "l2")).start()
    second = new_server(*fs_flags(tmp_path / "l2"))
    second.spawn()
    assert second.wait() not in (0, None)
    assert f"{tmp_path}/l2 is in use by another kv-sidecar" in second.stderr()
    assert "Traceback" not in second.stderr()
    assert not second.segments()
    assert first.healthy()
    first.kill()
    second.start()  # a killed owner is none


def test_what_was_stored_is_there_after_a_stop(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Stopped at once after the stores were answered: what was queued is written first."""
    server = new_server(*fs_flags(tmp_path / "l2"))
    for life in range(3):
        server.start()
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            assert worker.check_all(*range(8 * life)) == [CHUNKS] * 8 * life
            worker.store(*range(8 * life, 8 * life + 8))
            assert server.terminate(LONG) == 0
            worker.pool.unlink()
        assert len(objects(tmp_path / "l2")) == CHUNKS * 8 * (life + 1)
    assert not partial_files(tmp_path / "l2")
