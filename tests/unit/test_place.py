"""A directory that is mounted over, removed or made again while a server uses it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.tiers import epochs
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.base import AdapterUnusable, Relocated, TierError
from tests.support.disks import MIB, name, records
from tests.support.tiers import Bench, page_aligned

RECORD_BYTES = 3 * 4096


@contextmanager
def mounted_over(base: Path, *options: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=8m", *options]), "none", str(base)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(base)], check=True)


def bench_over(base: Path, shared: bool = False, **settings: Any) -> Bench:
    return Bench(
        Files(str(base), DirectIO(), direct=False, shared=shared), settings=settings
    ).start()


def cleared(bench: Bench) -> None:
    bench.l1.clear(force=True)
    bench.tiers.clear()
    (backend,) = bench.tiers.backends
    bench.run_until(lambda: not backend.clearing and not backend.marking.unmarked)


def stored(bench: Bench, number: int) -> None:
    """Also where the first try finds that the directory is another one."""
    (backend,) = bench.tiers.backends

    def kept() -> bool:
        if not bench.tiers.writes.objects:
            if len(backend.catalog):
                return True
            bench.l1.clear(force=True)
            bench.store(number)
        return False

    bench.run_until(kept)


def test_another_mount_for_a_moment(tmp_path: Path) -> None:
    """What was there is there again when it is gone, found and counted, without a restart."""
    bench = bench_over(tmp_path, max_capacity_gb=1)
    (backend,) = bench.tiers.backends
    bench.store(1, 2)
    bench.settle()
    with mounted_over(tmp_path):
        bench.l1.clear(force=True)
        assert bench.lookup(1, 2) == 0
        bench.run_until(lambda: backend.scanned and not len(backend.catalog))
        stored(bench, 3)
        bench.l1.clear(force=True)
        assert [bench.lookup(3), bench.lookup(1)] == [1, 0]
        assert len(records(tmp_path)) == 1
    assert len(records(tmp_path)) == 2
    bench.l1.clear(force=True)
    bench.run_ticking(lambda: bench.lookup(1, 2) == 2)
    bench.run_until(lambda: backend.scanned and len(backend.catalog) == 2)
    assert backend.catalog.used_bytes == 2 * RECORD_BYTES
    assert bench.lookup(3) == 0


def test_another_directory_where_a_shared_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment, and for one of two servers: both find what is in the first one."""
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 0.0)
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    one, other = (bench_over(parent / "l2", shared=True) for parent in (link, real))
    one.store(1)
    one.settle()
    cleared(one)  # so that there is a mark
    one.store(2)
    one.settle()
    link.unlink()
    link.symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    one.l1.clear(force=True)
    assert one.lookup(2) == 0
    stored(one, 3)
    one.l1.clear(force=True)
    assert one.lookup(3) == 1
    assert len(records(tmp_path / "empty")) == 1
    link.unlink()
    link.symlink_to(real)
    for bench in (one, other):
        bench.l1.clear(force=True)
        bench.run_ticking(lambda bench=bench: bench.lookup(2) == 1)  # type: ignore[misc]
        assert [bench.lookup(1), bench.lookup(3)] == [0, 0]


@pytest.mark.parametrize("shared", [False, True])
def test_nothing_is_found_or_read_at_another_place_without_a_word(
    tmp_path: Path, shared: bool
) -> None:
    """Of its mark nothing is known: what it has may have been cleared."""
    base, aside, arena = tmp_path / "l2", tmp_path / "aside", page_aligned(MIB)
    files = Files(str(base), DirectIO(), direct=False, shared=shared)
    files.open(arena)
    calls = [
        lambda: files.find([name(1)]),
        lambda: files.load(name(1), arena[:8192]),
        lambda: files.set_aside(name(1), "checksum"),
        lambda: files.write_mark("g20261130T101500-0123456789ab"),
    ]
    files.store(name(1), arena[:8192])
    shutil.copytree(base, aside)
    for call in calls:
        base.rename(tmp_path / "away")
        aside.rename(base)
        (tmp_path / "away").rename(aside)
        with pytest.raises(Relocated):
            call()
        assert files.find([name(1)]) == [8192]
    files.close()


def test_a_clear_holds_in_a_place_that_was_out_of_reach_then(tmp_path: Path) -> None:
    """Its engine has new weights, wherever the old ones' objects are."""
    bench = bench_over(tmp_path)
    bench.store(1)
    bench.settle()
    with mounted_over(tmp_path):
        bench.l1.clear(force=True)
        assert bench.lookup(1) == 0
        cleared(bench)
    (backend,) = bench.tiers.backends
    there = backend.epoch
    bench.run_ticking(lambda: backend.epoch is not there)
    bench.run_until(lambda: backend.scanned)
    assert bench.lookup(1) == 0
    stored(bench, 2)
    bench.l1.clear(force=True)
    assert [bench.lookup(2), bench.lookup(1)] == [1, 0]


def test_a_mount_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    """Nothing of what is below it is forgotten, and nothing is scanned anew."""
    files = Files(str(tmp_path), DirectIO(), direct=False)
    arena = page_aligned(MIB)
    files.open(arena)
    files.store(name(1), arena[:8192])
    with mounted_over(tmp_path, "ro"):
        for _ in range(2):
            with pytest.raises(TierError, match="EROFS"):
                files.find([name(1)])
            with pytest.raises(TierError, match="EROFS"):
                files.load(name(1), arena[:8192])
    assert files.find([name(1), name(2)]) == [8192, None]
    files.close()


def test_a_directory_that_was_removed_is_made_again(tmp_path: Path) -> None:
    base = tmp_path / "l2"
    bench = bench_over(base)
    bench.store(1)
    bench.settle()
    shutil.rmtree(base)
    bench.l1.clear(force=True)
    assert bench.lookup(1) == 0
    stored(bench, 2)
    bench.l1.clear(force=True)
    assert bench.lookup(2) == 1
    assert len(records(base)) == 1
    with pytest.raises(AdapterUnusable, match="in use by another"):
        Files(str(base), DirectIO()).open(page_aligned(MIB))


@pytest.mark.parametrize("shared", [False, True])
def test_a_directory_that_was_emptied_is_filled_again(
    tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that the server has made there; the directory itself is still the same."""
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 0.0)
    bench = bench_over(tmp_path, shared=shared)
    cleared(bench)
    bench.store(1)
    bench.settle()
    for entry in list(tmp_path.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    bench.l1.clear(force=True)
    assert bench.lookup(1) == 0
    stored(bench, 2)
    bench.l1.clear(force=True)
    assert bench.lookup(2) == 1
    cleared(bench)
    assert bench.lookup(2) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_every_call_of_a_directory_that_was_emptied_works(tmp_path: Path, shared: bool) -> None:
    arena, files = page_aligned(MIB), MovedFiles(str(tmp_path), DirectIO(), shared=shared)
    files.open(arena)
    calls = [
        lambda: files.store(name(1), arena[:8192]),
        lambda: files.find([name(1)]),
        lambda: files.delete([name(1)]),
        lambda: files.read_mark(),
        lambda: files.write_mark("g20261130T101500-0123456789ab"),
        lambda: list(files.scan()),
        lambda: files.set_aside(name(1), "checksum"),
        lambda: files.room(),
        lambda: files.keep(files.new_file(8192), bytes(4096), name(1)),
    ]
    for call in calls:
        for entry in list(tmp_path.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with suppress(Relocated):  # of one's own: its lock is gone
            call()
        call()
    files.close()


def test_a_shared_directory_that_was_removed_is_made_again(tmp_path: Path) -> None:
    base, arena = tmp_path / "l2", page_aligned(MIB)
    files = Files(str(base), DirectIO(), direct=False, shared=True)
    files.open(arena)
    shutil.rmtree(base)
    with suppress(Relocated):  # unless its inode has the same number
        files.room()
    assert files.room() > 0
    files.store(name(1), arena[:8192])
    assert files.find([name(1)]) == [8192]
    files.close()


def test_a_place_that_another_server_has_taken_is_not_used(tmp_path: Path) -> None:
    """It was removed, and somebody else was faster."""
    base, arena = tmp_path / "l2", page_aligned(MIB)
    files, other = (Files(str(base), DirectIO(), direct=False) for _ in range(2))
    files.open(arena)
    shutil.rmtree(base)
    other.open(arena)
    other.store(name(1), arena[:8192])
    for call in (
        lambda: files.store(name(2), arena[:8192]),
        lambda: files.delete([name(1)]),
        lambda: files.find([name(3)]),
    ):
        with pytest.raises(TierError, match="in use by another"):
            call()
    other.close()
    with pytest.raises(Relocated):
        files.find([name(3)])
    assert files.find([name(1)]) == [8192]
    files.close()


def test_what_is_done_in_the_new_place_is_no_matter_of_the_old_clear(tmp_path: Path) -> None:
    """Names of an old place mean other records in the new one."""
    bench = bench_over(tmp_path)
    bench.store(1)
    bench.settle()
    bench.l1.clear(force=True)
    bench.tiers.clear()
    bench.run_until(lambda: not bench.tiers.backends[0].clearing)
    with mounted_over(tmp_path):
        stored(bench, 1)
        bench.l1.clear(force=True)
        assert bench.lookup(1) == 1
    backend = bench.tiers.backends[0]
    there = backend.epoch
    bench.l1.clear(force=True)
    bench.run_ticking(lambda: backend.epoch is not there)
    assert bench.lookup(1) == 0
    bench.run_until(lambda: backend.scanned)
    assert bench.lookup(1) == 0
