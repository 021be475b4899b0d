"""The kernel tells who has the segment open, by the name that each registration was told."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.cache.segment import SHM_DIR, Segment, remove_orphans
from sidecar.engines.attachments import Attachments, watch_shared_memory
from tests.support.server import wait_until

SIZE = 4096
QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
_names = itertools.count()


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(f"attached_{os.getpid()}_{next(_names)}", SIZE)
    yield made
    made.remove()


@pytest.fixture
def attachments(segment: Segment) -> Iterator[Attachments]:
    made = Attachments(segment, watch_shared_memory())
    yield made
    made.close()


def mapped(name: str) -> mmap.mmap:
    """The segment, mapped as the stock client does it, without a descriptor left."""
    fd = os.open(SHM_DIR / name, os.O_RDWR)
    try:
        return mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)


def test_a_mapping_without_a_descriptor_counts(attachments: Attachments) -> None:
    first, second = attachments.name(1), attachments.name(2)
    assert not attachments.may_touch(1), "who has not opened it"
    mapping = mapped(first)
    assert attachments.may_touch(1) and not attachments.may_touch(2)
    other = mapped(second)
    mapping.close()
    assert not attachments.may_touch(1) and attachments.may_touch(2)
    other.close()


def test_it_is_the_same_memory(segment: Segment, attachments: Attachments) -> None:
    with mapped(attachments.name(1)) as mapping:
        mapping[7] = 42
    assert segment.map[7] == 42


def test_a_killed_process_has_closed_it(attachments: Attachments) -> None:
    code = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 4096); "
        "os.close(fd); os.fork() or sys.stdin.read(); print(flush=True); sys.stdin.read()"
    )
    path = str(SHM_DIR / attachments.name(1))
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    assert attachments.may_touch(1), "its child has the mapping, too"
    process.stdin.close()
    wait_until(lambda: not attachments.may_touch(1), "its child has ended")
    process.stdout.close()


def test_a_worker_is_attached_by_all_its_names(attachments: Attachments) -> None:
    """It registered again, and what it had mapped before is not unmapped yet."""
    before = mapped(attachments.name(1))
    after = mapped(attachments.name(1))
    after.close()
    assert attachments.may_touch(1)
    before.close()
    assert not attachments.may_touch(1)


def test_who_only_reads_the_files_of_the_folder_frees_nothing(attachments: Attachments) -> None:
    """`cp /dev/shm/*` at the same time: the kernel merges its opening with the worker's."""
    name = attachments.name(1)
    mapping = mapped(name)
    (SHM_DIR / name).read_bytes()
    assert attachments.may_touch(1)
    mapping.close()
    assert not attachments.may_touch(1)


def test_names_go_when_nobody_needs_them(segment: Segment, attachments: Attachments) -> None:
    mapping = mapped(attachments.name(1))
    attachments.name(2)
    attachments.prune(keep={2})
    assert len(list(SHM_DIR.glob(segment.name + "@*"))) == 2
    mapping.close()
    attachments.prune(keep={2})
    assert len(list(SHM_DIR.glob(segment.name + "@*"))) == 1
    attachments.prune(keep=())
    assert list(SHM_DIR.glob(segment.name + "*")) == [SHM_DIR / segment.name]


def test_names_go_with_the_segment(segment: Segment, attachments: Attachments) -> None:
    attachments.name(1)
    segment.remove()
    assert list(SHM_DIR.glob(segment.name + "*")) == []


def test_names_of_a_dead_server_are_removed() -> None:
    code = (
        "import os, sys; from sidecar.cache.segment import Segment; "
        "s = Segment(sys.argv[1], 4096); s.link('1'); os._exit(0)"
    )
    name = f"attached_{os.getpid()}_{next(_names)}"
    subprocess.run([sys.executable, "-c", code, name], check=True)
    assert len(list(SHM_DIR.glob(f"lmcache_l1_pool_{name}*"))) == 2
    remove_orphans()
    assert list(SHM_DIR.glob(f"lmcache_l1_pool_{name}*")) == []


def test_dropped_events_make_it_unknown(
    segment: Segment, attachments: Attachments, caplog: pytest.LogCaptureFixture
) -> None:
    attachments.name(1)
    noise = [SHM_DIR / f"{segment.name}_noise_{i}" for i in range(2)]
    for path in noise:
        path.touch()
    for number in range(QUEUE + 10):
        os.close(os.open(noise[number % 2], os.O_WRONLY))
    for path in noise:
        path.unlink()
    assert attachments.may_touch(1)
    assert "events are lost" in caplog.text
    attachments.name(2)
    assert not attachments.may_touch(2), "what came later is known again"


def test_without_a_name_of_its_own_it_is_unknown(
    segment: Segment, attachments: Attachments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(suffix: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment, "link", full)
    assert attachments.name(1) == segment.name
    assert attachments.may_touch(1)


def test_names_are_bounded(segment: Segment, attachments: Attachments) -> None:
    names = {attachments.name(1) for _ in range(100)}
    assert len(names) == 17 and segment.name in names
    assert attachments.may_touch(1), "by which name it has it open is not known any more"


def inherited(segment: Segment, names: int) -> list[mmap.mmap]:
    """So many workers have it open by names that an earlier server has told."""
    segment.is_inherited = True
    return [mapped(segment.link(str(number))) for number in range(1, names + 1)]


def test_who_ends_while_the_server_starts_is_gone(segment: Segment) -> None:
    """It reads the index for seconds. The other worker maps the L1 again, and is never without."""
    ending, staying = inherited(segment, 2)
    watch = watch_shared_memory()
    ending.close()
    attachments = Attachments(segment, watch)
    again = mapped(attachments.name(1))
    assert not attachments.predecessors_gone(own_name_told=False)
    staying.close()
    assert attachments.predecessors_gone(own_name_told=False)
    assert attachments.may_touch(1)
    again.close()
    attachments.close()


@pytest.mark.parametrize("lost", ["events", "all"])
def test_when_nobody_else_has_it_open_nobody_can_have(segment: Segment, lost: str) -> None:
    """Whatever is not known of names."""
    (worker,) = inherited(segment, 1)
    attachments = Attachments(segment, watch_shared_memory() if lost == "events" else None)
    attachments._unknown = True
    assert not attachments.predecessors_gone(own_name_told=True)
    worker.close()
    assert attachments.predecessors_gone(own_name_told=True)
    assert segment.links() == []
    attachments.close()
