"""A directory as a backend: whole records or none, one owner, nothing left behind."""

import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_IFSOCK
from typing import Any

import msgspec
import numpy as np
import pytest

from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.adapters.fs import FilesSettings
from sidecar.tiers.adapters.moved_files import MovedFiles
from sidecar.tiers.base import (
    Adapter,
    AdapterUnusable,
    Bytes,
    Corrupt,
    Missing,
    NoSpace,
    TierError,
)
from tests.support.disks import MIB, SPACE, files_below, mounted, name, settings

TAG = "g20261130T101500-0123456789ab"


@pytest.fixture
def opened(arena: Bytes) -> Iterator[Any]:
    """Opens adapters and closes them at the end."""
    made: list[Adapter] = []

    def open_adapter(base: Path, gpus_move: bool = False, **more: Any) -> Adapter:
        if gpus_move:
            adapter: Adapter = MovedFiles(str(base), DirectIO())
        else:
            adapter = settings(base, **more).build()
        adapter.open(arena)
        made.append(adapter)
        return adapter

    yield open_adapter
    for adapter in made:
        adapter.close()


@pytest.mark.parametrize("more", [{}, {"use_odirect": False}, {"sync": "data"}, {"sync": "full"}])
def test_what_was_stored_comes_back_after_a_restart(
    tmp_path: Path, arena: Bytes, opened: Any, more: dict[str, Any]
) -> None:
    adapter = opened(tmp_path, **more)
    wanted = arena[:MIB].copy()
    adapter.store(name(1), arena[:MIB])
    adapter.close()

    adapter = opened(tmp_path, **more)
    assert adapter.find([name(1), name(2)]) == [MIB, None]
    adapter.load(name(1), arena[MIB : 2 * MIB])
    assert np.array_equal(arena[MIB : 2 * MIB], wanted)
    with pytest.raises(Missing):
        adapter.load(name(2), arena[:MIB])
    adapter.delete([name(1), name(2)])
    assert adapter.find([name(1)]) == [None]
    assert files_below(tmp_path) == [".kv-sidecar.lock"]


def test_trying_the_disk_leaves_the_arena_and_the_directory_as_they_were(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    before = arena.copy()
    opened(tmp_path)
    assert np.array_equal(arena, before)
    assert files_below(tmp_path) == [".kv-sidecar.lock"]
    assert (tmp_path / ".tmp").stat().st_mode & 0o777 == 0o700


def test_a_second_owner_is_refused_until_the_first_is_gone(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    first = opened(tmp_path)
    with pytest.raises(AdapterUnusable, match=f'{tmp_path} is in use.*"shared": true') as refusal:
        settings(tmp_path).build().open(arena)
    assert "\n" not in str(refusal.value)
    first.close()
    opened(tmp_path)


def test_two_share_a_directory_that_is_said_to_be_shared(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    one, two = opened(tmp_path, shared=True), opened(tmp_path, shared=True)
    assert one.shared and two.shared
    one.store(name(1), arena[:4096])
    two.store(name(1), arena[:4096])
    two.load(name(1), arena[4096:8192])
    assert np.array_equal(arena[:4096], arena[4096:8192])


def test_a_killed_owner_leaves_no_lock_and_its_unfinished_files_go(
    tmp_path: Path, opened: Any
) -> None:
    code = f"""
import mmap, os, signal, numpy as np, msgspec
from sidecar.tiers.adapters.fs import FilesSettings
from sidecar.tiers.names import ObjectName
from tests.support.disks import MIB, SPACE, files_below, mounted, name, settings
arena = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
adapter = msgspec.convert({{"type": "fs", "base_path": {str(tmp_path)!r}}}, FilesSettings).build()
adapter.open(arena)
adapter._publish = lambda temp, name: os.kill(os.getpid(), signal.SIGKILL)
adapter.store(ObjectName("m@1.0@" + "0" * 32, bytes(32)), arena)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / ".tmp").iterdir())) == 1
    (tmp_path / ".tmp" / "somebody's").touch()
    opened(tmp_path)
    assert files_below(tmp_path) == [".kv-sidecar.lock", ".tmp/somebody's"]


def test_in_a_shared_directory_only_old_unfinished_files_go(tmp_path: Path, opened: Any) -> None:
    (tmp_path / ".tmp").mkdir()
    old, new = tmp_path / ".tmp/a.0.part", tmp_path / ".tmp/b.0.part"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    opened(tmp_path, shared=True)
    assert files_below(tmp_path) == [".tmp/b.0.part"]


@pytest.mark.parametrize("size", [0, 4096, MIB - 1, MIB + 1, 2 * MIB])
def test_a_file_of_another_length_is_not_loaded(
    tmp_path: Path, arena: Bytes, opened: Any, size: int
) -> None:
    adapter = opened(tmp_path)
    adapter.store(name(1), arena[:MIB])
    [file] = (tmp_path / "objects").rglob("*.kv")
    os.truncate(file, size)
    before = arena.copy()
    with pytest.raises(Corrupt) as error:
        adapter.load(name(1), arena[:MIB])
    assert error.value.cause == "length"
    assert np.array_equal(arena, before)


def test_a_scan_tells_sizes_and_the_order_of_use_and_ignores_the_rest(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    adapter = opened(tmp_path)
    for n in (1, 2, 3):
        adapter.store(name(n), arena[: n * 4096])
        os.utime(adapter._file(name(n)), (n, n))
    adapter.load(name(1), arena[:4096])  # used last now

    objects = tmp_path / "objects"
    folder = objects / SPACE / "01"
    (objects / "junk").write_text("a file where folders are")
    (folder / "junk.kv").touch()
    (folder / (name(9).hash.hex() + ".kv")).touch()  # in the wrong folder
    (folder / name(1).hash.hex()).touch()  # no suffix
    (folder / ("01" * 31 + "02.kv")).mkdir()
    (folder / ("01" * 31 + "03.kv")).symlink_to("/etc/passwd")
    (objects / SPACE / "02" / "deep").mkdir()

    found = sorted((f for batch in adapter.scan() for f in batch), key=lambda f: f.used_at)
    assert [(f.name, f.size) for f in found] == [
        (name(2), 8192), (name(3), 12288), (name(1), 4096),
    ]  # fmt: skip


def test_a_full_disk_is_said_to_be_full_and_nothing_of_the_record_stays(
    small_disk: Path, arena: Bytes, opened: Any
) -> None:
    adapter = opened(small_disk, min_free_gb=0)
    adapter.store(name(1), arena[: 2 * MIB])
    with pytest.raises(NoSpace) as error:
        adapter.store(name(2), arena[: 2 * MIB])
    assert error.value.cause == "ENOSPC"
    assert not list((small_disk / ".tmp").iterdir())
    assert adapter.find([name(1), name(2)]) == [2 * MIB, None]
    assert 0 <= adapter.room() <= MIB
    adapter.delete([name(1)])
    adapter.store(name(2), arena[: 2 * MIB])


def test_a_directory_that_is_full_at_start_is_still_read(
    small_disk: Path, arena: Bytes, opened: Any
) -> None:
    adapter = opened(small_disk)
    adapter.store(name(1), arena[:4096])
    adapter.close()
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/filler", "bs=64k"], capture_output=True)
    adapter = opened(small_disk)
    adapter.load(name(1), arena[4096:8192])
    assert np.array_equal(arena[:4096], arena[4096:8192])
    assert adapter.room() < 0  # below the floor of 1 GiB


def test_an_error_of_the_disk_has_its_name_and_a_short_write_is_no_success(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    adapter = opened(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))  # the kernel writes 1 MiB, then EFBIG
    try:
        with pytest.raises(TierError) as error:
            adapter.store(name(1), arena[: 2 * MIB])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.cause == "EFBIG"
    assert files_below(tmp_path) == [".kv-sidecar.lock"]


def test_folders_that_somebody_removed_come_back(tmp_path: Path, arena: Bytes, opened: Any) -> None:
    adapter = opened(tmp_path)
    adapter.store(name(1), arena[:4096])
    for folder in ("objects", ".tmp", "quarantine"):
        subprocess.run(["rm", "-r", str(tmp_path / folder)], check=True)
    assert adapter.find([name(1)]) == [None]
    assert list(adapter.scan()) == []
    assert not adapter.set_aside(name(1), "checksum")
    adapter.store(name(1), arena[:4096])
    assert adapter.find([name(1)]) == [4096]


def test_bad_files_are_kept_the_newest_few(
    tmp_path: Path, arena: Bytes, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = opened(tmp_path)
    for n in range(20):
        adapter.store(name(n), arena[:4096])
        assert adapter.set_aside(name(n), "../header\n")
        assert adapter.find([name(n)]) == [None]
    kept = sorted(p.name for p in (tmp_path / "quarantine").iterdir())
    assert [k[:2] for k in kept] == [f"{n:02x}" for n in range(4, 20)]
    assert all(re.fullmatch(r"[0-9a-f]{64}\.\.\._header_\.\d+", k) for k in kept)
    assert [f for batch in adapter.scan() for f in batch] == []

    monkeypatch.setattr("sidecar.tiers.adapters.quarantine.MAX_BYTES", 3 * 4096)
    adapter.store(name(1), arena[:8192])
    assert adapter.set_aside(name(1), "magic")
    assert len(list((tmp_path / "quarantine").iterdir())) == 2
    adapter.store(name(1), arena[: 4 * 4096])
    assert not adapter.set_aside(name(1), "magic")
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_without_o_direct_it_says_so_once_and_works(
    tmp_path: Path, arena: Bytes, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # tmpfs has O_DIRECT since Linux 6.6; ramfs never had.
    with mounted(tmp_path / "ram", "ramfs") as disk:
        with caplog.at_level(logging.WARNING):
            adapter = opened(disk)
            adapter.store(name(1), arena[:4096])
        [warning] = caplog.records
        assert "O_DIRECT" in warning.getMessage() and str(disk) in warning.getMessage()
        adapter.load(name(1), arena[4096:8192])
        assert np.array_equal(arena[:4096], arena[4096:8192])
        adapter.close()


def test_shared_memory_can_be_the_directory(arena: Bytes, opened: Any) -> None:
    base = Path(f"/dev/shm/kv-sidecar-test-{os.getpid()}")
    try:
        adapter = opened(base)
        adapter.store(name(1), arena[:4096])
        adapter.load(name(1), arena[4096:8192])
        assert np.array_equal(arena[:4096], arena[4096:8192])
    finally:
        subprocess.run(["rm", "-r", str(base)], check=True)


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(
    tmp_path: Path, arena: Bytes
) -> None:
    (tmp_path / "file").touch()
    for base in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(AdapterUnusable, match=f"{base} cannot be used: E.*{tmp_path}/file"):
            settings(base).build().open(arena)
    with mounted(tmp_path / "ro", "tmpfs") as disk:
        adapter = settings(disk).build()
        adapter.open(arena)  # all its folders are there
        adapter.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(AdapterUnusable, match="EROFS: Read-only file system"):
            settings(disk).build().open(arena)


def test_a_failed_open_does_not_keep_the_lock(
    tmp_path: Path, arena: Bytes, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Files, arena: Bytes) -> None:
        raise TierError("EIO")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "_open_io", fails)
        with pytest.raises(AdapterUnusable, match="EIO"):
            settings(tmp_path).build().open(arena)
    opened(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"base_path": "relative"}, "not absolute"),
        ({"base_path": "/x", "relative_tmp_dir": "/tmp"}, "relative_tmp_dir"),
        ({"base_path": "/x", "relative_tmp_dir": "a/../.."}, "relative_tmp_dir"),
        ({"base_path": "/x", "relative_tmp_dir": "objects"}, "relative_tmp_dir"),
        ({"base_path": "/x", "sync": "maybe"}, "sync"),
        ({"base_path": "/x", "serde": {}}, "serde"),
        ({"base_path": "/x", "shared": True, "max_capacity_gb": 1}, "does not go with shared"),
        ({"base_path": "/x", "min_free_gb": -1}, "min_free_gb"),
        ({}, "base_path"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message) as error:
        msgspec.convert({"type": "fs", **spec}, FilesSettings, strict=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory", "socket"])
def test_only_regular_files_are_opened(
    tmp_path: Path, arena: Bytes, opened: Any, kind: str
) -> None:
    """Opening a FIFO would wait for ever; a link leads wherever somebody likes."""
    adapter = opened(tmp_path, gpus_move=True)
    adapter.store(name(1), arena[:MIB])
    [file] = tmp_path.glob("objects/*/*/*.kv")
    elsewhere = tmp_path / "elsewhere"
    os.replace(file, elsewhere)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "symlink":
        file.symlink_to(elsewhere)
    elif kind == "directory":
        file.mkdir()
    else:
        os.mknod(file, S_IFSOCK | 0o600)
    assert adapter.find([name(1)]) == [None]
    with pytest.raises(Corrupt, match="regular"):
        adapter.load(name(1), arena[:MIB])
    with pytest.raises(Corrupt, match="regular"):
        adapter.peek(name(1), MIB)
    assert adapter.set_aside(name(1), "type") is True
    assert not os.path.lexists(file)
    adapter.store(name(1), arena[:MIB])
    adapter.load(name(1), arena[:MIB])


def test_a_record_takes_the_place_of_what_is_no_file(
    tmp_path: Path, arena: Bytes, opened: Any
) -> None:
    adapter = opened(tmp_path)
    adapter.store(name(1), arena[:MIB])
    [file] = tmp_path.glob("objects/*/*/*.kv")
    file.unlink()
    os.mkfifo(file)
    adapter.store(name(1), arena[:MIB])
    assert adapter.find([name(1)]) == [MIB]


def test_a_file_that_somebody_swaps_while_it_is_written_gets_no_name(
    tmp_path: Path, opened: Any
) -> None:
    adapter = opened(tmp_path, gpus_move=True)
    temp = adapter.new_file(MIB)
    os.unlink(temp)
    os.mkfifo(temp)
    with pytest.raises(Corrupt, match="regular"):
        adapter.keep(temp, bytes(4096), name(1))
    assert adapter.find([name(1)]) == [None]


def test_folders_do_not_outlive_their_records(tmp_path: Path, arena: Bytes, opened: Any) -> None:
    """Nor do they get in the way of a record that is on its way into one."""
    adapter = opened(tmp_path)
    names = [name(n).in_epoch(tag) for tag in ("", TAG) for n in range(1, 20)]
    for each in names:
        adapter.store(each, arena[:4096])
    adapter.delete(names[1:])
    folders = [path for path in tmp_path.glob("objects*/**") if path.is_dir()]
    assert len(folders) == 3  # of the one that is left
    adapter.delete(names)
    assert not list(tmp_path.glob("objects*"))
    with ThreadPoolExecutor(4) as pool:

        def churn(number: int) -> None:
            record = arena[number * MIB : number * MIB + 4096]
            for _ in range(200):
                adapter.store(name(number), record)
                adapter.delete([name(number)])

        list(pool.map(churn, range(4)))
    assert not list(tmp_path.glob("objects*"))


def test_the_mark_of_a_directory(tmp_path: Path, arena: Bytes, opened: Any) -> None:
    """One of an earlier version has none. One that has lost it is not taken for such a one."""
    adapter = opened(tmp_path)
    adapter.store(name(1), arena[:4096])
    assert adapter.read_mark() == ""
    adapter.write_mark(TAG)
    assert adapter.read_mark() == TAG
    adapter.store(name(1).in_epoch(TAG), arena[:4096])
    adapter.close()
    adapter = opened(tmp_path)
    assert adapter.read_mark() == TAG
    (tmp_path / "epoch").unlink()
    assert adapter.read_mark() is None
