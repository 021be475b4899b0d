"""Shared memory is owned by lock: taken once, removed by the next start, never somebody else's."""

import errno
import mmap
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.app import _sweep
from sidecar.cache import arena as arena_module
from sidecar.cache import segment as segment_module
from sidecar.cache import will
from sidecar.cache.arena import Arena
from sidecar.cache.lockfile import lock
from sidecar.cache.segment import SHM_DIR, Segment, SegmentError, remove_orphans
from sidecar.engines.host_segments import MappedSegments, SegmentRefused
from tests.support.descriptors import no_free_descriptor
from tests.support.disks import mounted
from tests.support.server import wait_until

MIB = 1 << 20


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    for path in SHM_DIR.glob(f"*{name}"):
        path.unlink()


def test_a_name_is_taken_once_and_free_again(name: str) -> None:
    segment = Segment(name, MIB)
    path = SHM_DIR / segment.name
    assert path.stat().st_size == MIB and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SegmentError, match="another kv-sidecar"):
        Segment(name, MIB)
    segment.remove()
    assert not list(SHM_DIR.glob(f"*{name}"))
    Segment(name, MIB).remove()


def test_a_sweep_by_another_server_fails_nobody(name: str) -> None:
    """Who looks for orphans holds each free lock for a moment."""
    held = lock(SHM_DIR / f"kv_sidecar_lock_{name}")
    assert held is not None
    threading.Timer(0.2, os.close, [held]).start()
    Segment(name, MIB).remove()


def test_sweeping_goes_on_after_a_time_without_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = iter([None, None])
    monkeypatch.setattr("sidecar.app.time.sleep", lambda seconds: next(rounds))
    with no_free_descriptor(), pytest.raises(StopIteration):
        _sweep()


def test_somebody_elses_segment_is_left_alone(name: str) -> None:
    path = SHM_DIR / f"lmcache_l1_pool_{name}"
    path.write_bytes(b"theirs")
    with pytest.raises(SegmentError, match="another program"):
        Segment(name, MIB)
    remove_orphans()
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "another user's"])
def test_what_anybody_puts_into_shared_memory_keeps_no_server_from_starting(
    name: str, kind: str
) -> None:
    """Under the name of a lock; it is left alone, and only a server of that name is refused."""
    path, target = SHM_DIR / f"kv_sidecar_lock_{name}", SHM_DIR / f"target-{name}"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.touch(0o666)
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(path, 12345, -1)
    removed, _, foreign = remove_orphans()
    assert path.name in foreign and f"lmcache_l1_pool_{name}" not in removed
    with pytest.raises(
        SegmentError, match=f"{path} is not a file of this user .*choose another --shm-name"
    ):
        Segment(name, MIB)
    assert os.path.lexists(path) and not target.exists()
    if kind == "directory":
        path.rmdir()


@pytest.mark.parametrize("kind", ["directory", "another user's"])
def test_what_stands_in_the_place_of_a_dead_servers_segment_is_left_alone(
    name: str, kind: str
) -> None:
    lock_path, path = SHM_DIR / f"kv_sidecar_lock_{name}", SHM_DIR / f"lmcache_l1_pool_{name}"
    lock_path.touch(0o600)
    if kind == "directory":
        path.mkdir()
    else:
        path.touch()
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(path, 12345, -1)
    assert path.name not in remove_orphans().removed
    assert path.exists() and not lock_path.exists()
    if kind == "directory":
        path.rmdir()


@pytest.mark.parametrize("step", ["ftruncate", "mmap"])
def test_a_segment_that_cannot_be_had_leaves_nothing(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os if step == "ftruncate" else segment_module.mmap, step, fail)
        with pytest.raises(SegmentError, match=r"cannot have 0\.00 GiB: Cannot allocate memory"):
            Segment(name, MIB)
    assert not list(SHM_DIR.glob(f"*{name}"))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    Segment(name, MIB).remove()


def test_shared_memory_that_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "shm", "tmpfs", "-o", "ro") as shm:
        monkeypatch.setattr(segment_module, "SHM_DIR", shm)
        assert remove_orphans() == ([], [], [])
        with pytest.raises(SegmentError, match=r"_lock_.* cannot be made: Read-only file system"):
            Segment(name, MIB)


def test_what_a_killed_owner_left_is_removed(name: str) -> None:
    code = (
        "import os, signal; from sidecar.cache.segment import Segment;"
        f"Segment({name!r}, 1 << 20); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code])
    alive = Segment(name + "-alive", MIB)
    assert f"lmcache_l1_pool_{name}" in remove_orphans().removed
    assert not (SHM_DIR / f"lmcache_l1_pool_{name}").exists()
    assert (SHM_DIR / alive.name).exists()
    alive.remove()


def test_an_end_that_was_cut_short_is_ended_by_the_next_start(name: str) -> None:
    """A further name of the segment holds its memory as the segment's own does."""
    lock_path, link = SHM_DIR / f"kv_sidecar_lock_{name}", SHM_DIR / f"lmcache_l1_pool_{name}@1"
    lock_path.touch(0o600)
    link.touch(0o600)
    remove_orphans()
    assert not link.exists() and not lock_path.exists()


def test_a_signal_in_the_midst_of_the_end_ends_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(name, MIB)
    segment.link("1")
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        monkeypatch.setattr(Path, "unlink", unlink)
        segment.remove()
        raise SystemExit

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(SystemExit):
        segment.remove()
    assert not list(SHM_DIR.glob(f"*{name}*"))


def test_too_little_shared_memory_says_how_much_there_is(name: str) -> None:
    with pytest.raises(SegmentError, match=r"/dev/shm has [\d.]+ GiB free.*mount"):
        Segment(name, 1 << 50)
    assert not list(SHM_DIR.glob(f"*{name}"))


@pytest.fixture
def small_shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with mounted(tmp_path / "shm", "tmpfs", "-o", "size=40m") as shm:
        monkeypatch.setattr(segment_module, "SHM_DIR", shm)
        yield shm


@pytest.mark.parametrize("keep_seconds", [0, 100])
def test_memory_that_workers_still_map_is_waited_for(
    name: str, keep_seconds: float, small_shm: Path
) -> None:
    """The L1 of the ended server takes the room of its successor's until they let go of it."""
    old = Segment(name, 32 * MIB, keep_seconds)
    os.posix_fallocate(old.fd, 0, old.size)
    old.index_path.touch()
    if keep_seconds:
        old.leave()
        successor = Segment(name, 32 * MIB, keep_seconds)
        old.map.close()
        os.close(old.fd)
        workers, workers_fd = mmap.mmap(successor.fd, 0), os.dup(successor.fd)
        successor.renew()
    else:
        old.remove()
        workers, workers_fd = old.map, old.fd
        successor = Segment(name, 32 * MIB)
    arena, usable = Arena(successor), threading.Event()
    arena.start_populating(lambda offset, size: usable.set())
    assert not usable.is_set()
    workers.close()
    os.close(workers_fd)
    assert usable.wait(60)
    arena.stop_populating()
    successor.remove()


def test_memory_of_other_programs_is_not_waited_for(name: str, small_shm: Path) -> None:
    """However many names it has."""
    (small_shm / "folder").mkdir()
    theirs = small_shm / "folder/theirs"
    theirs.write_bytes(bytes(20 * MIB))
    os.link(theirs, small_shm / "theirs")
    with pytest.raises(SegmentError, match=r"has 0\.02 GiB free"):
        Segment(name, 32 * MIB)


@pytest.mark.parametrize("bad", ["", "a/b", "..//x", "x" * 65, "a b"])
def test_a_name_cannot_leave_its_folder(bad: str) -> None:
    with pytest.raises(SegmentError, match="bad shared-memory name"):
        Segment(bad, MIB)


def test_the_whole_arena_becomes_usable(name: str) -> None:
    segment = Segment(name, 130 * MIB)
    arena, pieces, done = Arena(segment), [], threading.Event()

    def on_piece(offset: int, size: int) -> None:
        pieces.append((offset, size))
        if offset + size == arena.size:
            done.set()

    arena.start_populating(on_piece)
    assert pieces[0] == (0, 64 * MIB), "who hears `ready` finds room"
    assert done.wait(60)
    arena.stop_populating()
    assert pieces == [(0, 64 * MIB), (64 * MIB, 64 * MIB), (128 * MIB, 2 * MIB)]
    assert os.stat(SHM_DIR / segment.name).st_blocks * 512 == arena.size
    segment.remove()


def test_parts_become_usable_in_turn(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first has one piece less."""
    segment = Segment(name, 322 * MIB)
    arena, usable = Arena(segment, parts=2), []
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, offset, size: None)
    monkeypatch.setattr(arena_module, "fill_page_tables", lambda region: None)
    arena.start_populating(lambda offset, size: usable.append(offset // MIB))
    wait_until(lambda: len(usable) == 6, "the last piece")
    arena.stop_populating()
    assert usable == [0, 128, 64, 192, 256, 320]
    segment.remove()


@pytest.mark.parametrize("full_from", [0, 1, 2])
def test_the_arena_grows_on_when_shared_memory_has_room_again(
    name: str, full_from: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the first piece finds it full, or one in the background."""
    segment = Segment(name, 150 * MIB)
    arena, usable = Arena(segment), []
    room, refused = threading.Event(), threading.Semaphore(0)

    def fallocate(fd: int, offset: int, size: int) -> None:
        if offset >= full_from * arena_module.PIECE_BYTES and not room.is_set():
            refused.release()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(arena_module, "fill_page_tables", lambda region: None)
    monkeypatch.setattr(arena_module, "_RETRY_SECONDS", 0.01)
    arena.start_populating(lambda offset, size: usable.append(offset // MIB))
    for _ in range(3):
        assert refused.acquire(timeout=60)
    assert len(usable) == full_from
    room.set()
    wait_until(lambda: usable == [0, 64, 128], "the whole arena")
    arena.stop_populating()
    assert [record.message for record in caplog.records] == [
        f"the L1 stops at {full_from * 64 * MIB} of {150 * MIB} bytes: /dev/shm: "
        "No space left on device; it grows on when there is room",
        "the L1 grows on: /dev/shm has room again",
    ]
    segment.remove()


def test_a_real_dev_shm_that_is_full_for_a_moment() -> None:
    code = """
import logging, sys, threading
from pathlib import Path
from sidecar.cache.arena import Arena
from sidecar.cache.segment import Segment
logging.basicConfig(stream=sys.stdout, format="%(message)s")
segment, filler, usable = Segment("full", 192 << 20), Path("/dev/shm/filler"), []
filler.write_bytes(bytes(100 << 20))
grown = threading.Event()
logging.getLogger().addHandler(room := logging.Handler())
room.emit = lambda record: filler.unlink(missing_ok=True)  # when it is told that it is full
arena = Arena(segment)
arena.start_populating(lambda offset, size: (usable.append(size), len(usable) == 3 and grown.set()))
print(grown.wait(60), sum(usable) == 192 << 20, arena.bytes[::4096].sum())
arena.stop_populating()
segment.remove()
"""
    mounts = 'mount -t tmpfs -o size=200m tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        [*before, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    stopped, went_on, result = done.stdout.splitlines()
    assert stopped.startswith("the L1 stops at ") and went_on.startswith("the L1 grows on")
    assert result == "True True 0"


def test_an_arena_that_waits_for_room_can_be_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(name, MIB)

    def fallocate(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(arena_module, "_RETRY_SECONDS", 600.0)
    arena = Arena(segment)
    arena.start_populating(lambda offset, size: None)
    arena.stop_populating()
    segment.remove()


@pytest.mark.parametrize(("option", "good"), [("rw,huge=advise", True), ("rw", False)])
def test_huge_pages_are_refused_where_the_mount_has_none(
    name: str, option: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none /tmp tmpfs huge=always 0 0\ntmpfs /dev/shm tmpfs {option} 0 0\n")
    monkeypatch.setattr(arena_module, "_MOUNTS", mounts)
    segment = Segment(name, MIB)
    if good:
        assert Arena(segment, huge_pages=True).bytes.nbytes == MIB
    else:
        with pytest.raises(SegmentError, match="remount,huge=advise"):
            Arena(segment, huge_pages=True)
    segment.remove()


@pytest.mark.parametrize(
    "bad",
    ["/etc/passwd", "/../etc/passwd", "/lmcache_kv_../x", "lmcache_kv_1", "/lmcache_kv_",
     "/other_1", "/lmcache_l1_pool_x", "/lmcache_kv_1\0", "", "/"],
)  # fmt: skip
def test_only_a_clients_segments_are_opened(bad: str) -> None:
    with pytest.raises(SegmentRefused, match="segment name"):
        MappedSegments({bad: 1}, 4096)


def test_a_clients_segment_is_mapped_and_checked(name: str) -> None:
    path = SHM_DIR / f"lmcache_kv_{name}"
    path.write_bytes(b"0123456789")
    shm_name = f"/lmcache_kv_{name}"
    assert bytes(MappedSegments({shm_name: 10}, 4096).bytes[:10]) == b"0123456789"
    for nbytes in (0, 11, 1 << 40):
        with pytest.raises(SegmentRefused, match="bytes"):
            MappedSegments({shm_name: nbytes}, 4096)
    path.unlink()
    with pytest.raises(SegmentRefused, match="No such file"):
        MappedSegments({shm_name: 10}, 4096)
    path.symlink_to("/etc/passwd")
    with pytest.raises(SegmentRefused):
        MappedSegments({shm_name: 10}, 4096)


Clock = Callable[[float], None]


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets how much later it is. In a folder of its own: what others keep is not to expire."""
    monkeypatch.setattr(segment_module, "SHM_DIR", tmp_path)
    before = will.now()
    return lambda seconds: monkeypatch.setattr(will, "now", lambda: before + seconds)


def test_what_is_left_is_kept_for_its_time(name: str, clock: Clock) -> None:
    segment = Segment(name, MIB, keep_seconds=100)
    segment.index_path.touch()
    segment.leave()
    segment.leave()  # once more is nothing
    assert segment.name in remove_orphans().kept
    ((kept, size, left),) = [one for one in segment_module.kept() if one.name == name]
    assert (kept, size) == (name, 0) and 0 < left <= 100
    clock(101)
    assert not [one for one in segment_module.kept() if one.name == name]
    assert segment.name in remove_orphans().removed
    assert not list(segment_module.SHM_DIR.iterdir())


def test_the_time_of_who_was_killed_counts_from_when_it_is_seen(name: str, clock: Clock) -> None:
    segment = Segment(name, MIB, keep_seconds=100)
    os.close(segment._lock_fd)  # as the kernel does
    clock(1000)
    assert segment.name in remove_orphans().kept
    clock(1099)
    assert segment.name in remove_orphans().kept
    clock(1101)
    assert segment.name in remove_orphans().removed


def test_a_successor_gets_the_same_memory(name: str, clock: Clock) -> None:
    """Whenever it comes: what is still there is its own to decide about."""
    segment = Segment(name, MIB, keep_seconds=100)
    segment.index_path.touch()
    segment.map[:4] = b"kept"
    segment.leave()
    clock(101)
    assert segment.name in remove_orphans(spare=name).kept
    heir = Segment(name, MIB, keep_seconds=100)
    assert heir.is_inherited and heir.map[:4] == b"kept"
    heir.renew()
    assert not heir.is_inherited and heir.map[:4] == bytes(4)
    heir.remove()
    assert not list(segment_module.SHM_DIR.iterdir())


@pytest.mark.parametrize("how", ["another size", "no index", "not wanted"])
def test_what_cannot_be_gone_on_with_is_replaced(name: str, how: str, clock: Clock) -> None:
    old = Segment(name, MIB, keep_seconds=100)
    if how != "no index":
        old.index_path.touch()
    old.leave()
    size, keep = (2 * MIB if how == "another size" else MIB), (0 if how == "not wanted" else 100)
    heir = Segment(name, size, keep_seconds=keep)
    assert not heir.is_inherited and os.fstat(heir.fd).st_size == size
    heir.remove()
    assert not list(segment_module.SHM_DIR.iterdir())


def test_what_is_kept_outlives_who_cannot_map_it(
    name: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Segment(name, MIB, keep_seconds=100)
    old.index_path.touch()
    old.map[:4] = b"kept"
    old.leave()

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        with pytest.raises(SegmentError, match="no memory"):
            Segment(name, MIB, keep_seconds=100)
    heir = Segment(name, MIB, keep_seconds=100)
    assert heir.is_inherited and heir.map[:4] == b"kept"
    heir.remove()
    assert not list(segment_module.SHM_DIR.iterdir())


def test_the_kernel_tells_whether_anybody_else_has_it(name: str) -> None:
    segment = Segment(name, MIB)
    assert segment.is_alone()
    path = SHM_DIR / segment.link("1")
    script = f"import mmap; f = open('{path}', 'r+b'); m = mmap.mmap(f.fileno(), 0); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as other:
        wait_until(lambda: not segment.is_alone(), "the other has mapped it")
        assert other.stdin is not None
        other.stdin.close()
        other.wait()
    assert segment.is_alone()
    segment.remove()


def test_nothing_is_told_of_what_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is removed in that moment, or the kernel has no locks."""
    monkeypatch.setattr(segment_module, "_is_ours", lambda path: True)
    monkeypatch.setattr(segment_module, "lock", no_lock)
    (SHM_DIR / "kv_sidecar_lock_unlockable").touch()
    try:
        assert segment_module.kept() == []
    finally:
        (SHM_DIR / "kv_sidecar_lock_unlockable").unlink()


def no_lock(path: Path) -> None:
    raise OSError(errno.ENOSYS, "no locks here")
