"""`kv-sidecar doctor`: too little shared memory, memory, and memory that may be locked."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.commands.doctor import memory
from tests.support.doctor import around, doctor


def in_small_shm(size: str) -> list[str]:
    """Words before a command that then has a /dev/shm of `size`, in a mount namespace."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    return before


def test_a_small_dev_shm() -> None:
    code, findings = doctor("--l1-size-gb", "1", before=in_small_shm("64m"))
    assert code == 1
    assert findings["/dev/shm"]["level"] == "problem"
    assert findings["/dev/shm"]["what"] == "64 MiB free of 64 MiB; the L1 needs 1 GiB"


def test_a_dev_shm_that_promises_more_than_there_is() -> None:
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
    _, findings = doctor("--l1-size-gb", str(gib + 8), before=in_small_shm(f"{gib + 16}g"))
    assert findings["/dev/shm"]["level"] == "ok"
    assert findings["memory"]["level"] == "problem"


def test_without_a_size_nothing_is_compared() -> None:
    _, findings = doctor(before=in_small_shm("1m"))
    assert findings["/dev/shm"]["level"] == "ok"
    assert "--l1-size-gb" in findings["/dev/shm"]["what"]


def test_a_container_with_less_memory_than_the_machine(tmp_path: Path) -> None:
    # Of 400 MiB the kernel drops 100 when somebody needs them: files that were read.
    (tmp_path / "memory.current").write_text(f"{400 << 20}\n")
    cached = f"active_file {60 << 20}\ninactive_file {40 << 20}\n"
    (tmp_path / "memory.stat").write_text(f"shmem {200 << 20}\n{cached}")
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    finding = memory.available(around(), cgroup=tmp_path)
    assert (finding.level, finding.what) == ("problem", "724 MiB available; the L1 needs 1 GiB")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(around("--l1-size-gb", "0.01"), cgroup=tmp_path).level == "ok"


@pytest.fixture
def low_memlock() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


@pytest.mark.usefixtures("low_memlock")
def test_a_low_memlock_matters_to_what_locks_memory() -> None:
    mooncake = '{"type": "mooncake_store", "local_hostname": "a", "master_server_address": "a:1"'
    finding = memory.memlock(around("--l2-adapter", mooncake + ', "protocol": "rdma"}'))
    assert finding.level == "problem"
    assert "64 KiB" in finding.what and "1 GiB" in finding.what
    assert memory.memlock(around("--l2-adapter", mooncake + "}")).level == "ok"


def test_huge_pages_that_nobody_uses(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("HugePages_Total: 16\nHugePages_Free: 8\nHugepagesize: 2048 kB\n")
    finding = memory.huge_pages(meminfo)
    assert (finding.level, finding.what[:6]) == ("warning", "16 MiB")
    meminfo.write_text("HugePages_Total: 8\nHugePages_Free: 0\nHugepagesize: 2048 kB\n")
    assert memory.huge_pages(meminfo).level == "ok"
