"""`kv-sidecar doctor`: too little shared memory, memory, and memory that may be locked."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.cache.segment import Segment
from sidecar.commands.doctor import memory
from tests.support.doctor import around, doctor
from tests.support.small_shm import with_small_shm


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


def test_a_dev_shm_that_cannot_be_written() -> None:
    code, findings = doctor("--l1-size-gb", "1", before=in_small_shm("4g,ro"))
    assert code == 1
    assert findings["/dev/shm"]["level"] == "problem"
    assert "mounted read-only" in findings["/dev/shm"]["what"]


def test_a_dev_shm_that_promises_more_than_there_is() -> None:
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
    _, findings = doctor("--l1-size-gb", str(gib + 8), before=in_small_shm(f"{gib + 16}g"))
    assert findings["/dev/shm"]["level"] == "ok"
    assert findings["memory"]["level"] == "problem"


def test_memory_that_workers_of_an_earlier_server_still_map() -> None:
    def test() -> None:
        earlier = Segment("earlier", 48 << 20)
        os.posix_fallocate(earlier.fd, 0, earlier.size)
        earlier.remove()
        _, findings = doctor("--l1-size-gb", str(32 / 1024))
        assert findings["/dev/shm"]["level"] == "warning"
        assert findings["/dev/shm"]["what"] == (
            "16 MiB free of 64 MiB, for an L1 of 32 MiB; processes map 48 MiB of removed files"
        )
        earlier.map.close()
        os.close(earlier.fd)
        assert doctor("--l1-size-gb", str(32 / 1024))[1]["/dev/shm"]["level"] == "ok"

    with_small_shm("64m", test)


def test_what_an_ended_server_has_left() -> None:
    """It is said for how long, and takes no room from a server of its name."""

    def test() -> None:
        assert doctor()[1]["kept L1"]["what"] == "none"
        ended = Segment("ended", 48 << 20, keep_seconds=1e6)
        os.posix_fallocate(ended.fd, 0, ended.size)
        assert doctor()[1]["kept L1"]["what"] == "none", "its server runs"
        ended.leave()
        _, findings = doctor("--l1-size-gb", str(48 / 1024), "--shm-name", "ended")
        assert findings["/dev/shm"]["level"] == findings["kept L1"]["level"] == "ok"
        assert re.fullmatch(
            r"ended: 48 MiB, (9999\d\d|1000000) s more", findings["kept L1"]["what"]
        )
        _, findings = doctor("--l1-size-gb", str(48 / 1024), "--shm-name", "another")
        assert findings["/dev/shm"]["level"] == "problem"

    with_small_shm("64m", test)


def test_without_a_size_nothing_is_compared() -> None:
    _, findings = doctor(before=in_small_shm("1m"))
    assert findings["/dev/shm"]["level"] == "ok"
    assert "--l1-size-gb" in findings["/dev/shm"]["what"]


V1 = ("cgroup", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("cgroup2", "memory.max", "memory.current", "")
NO_LIMIT = {V1: 9223372036854771712, V2: "max"}
Version = tuple[str, str, str, str]


def group(directory: Path, version: Version, limit: object, used: int = 0, cached: int = 0) -> None:
    """The files of a control group, in MiB but for a limit that is none."""
    directory.mkdir(parents=True, exist_ok=True)
    _, limit_file, usage, prefix = version
    limit = limit if limit == NO_LIMIT[version] else int(str(limit)) << 20
    (directory / limit_file).write_text(f"{limit}\n")
    (directory / usage).write_text(f"{used << 20}\n")
    stat = f"{prefix}active_file {cached << 19}\n{prefix}inactive_file {cached << 19}\n"
    (directory / "memory.stat").write_text(f"cache 1\n{stat}")
    if version == V2:
        (directory / "memory.high").write_text("max\n")


def machine(root: Path, version: Version, own: str, shown: str = "/") -> Path:
    """A system whose process is in the group `own`; the directory of the group `shown`."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemAvailable: 13631488 kB\n")
    v1 = version == V1
    (proc / "cgroup").write_text(f"4:cpu,memory:{own}\n0::/\n" if v1 else f"0::{own}\n")
    where = "/sys/fs/cgroup/memory" if v1 else "/sys/fs/cgroup"
    options = "rw,cpu,memory" if v1 else "rw"
    (proc / "mountinfo").write_text(
        f"24 1 0:20 / /proc rw shared:5 - proc proc rw\n"
        f"30 24 0:26 {shown} {where} rw,nosuid shared:9 - {version[0]} cgroup {options}\n"
    )
    return root / where.lstrip("/")


def test_a_container_with_less_memory_than_the_machine(tmp_path: Path) -> None:
    top = machine(tmp_path, V2, "/")
    # Of 400 MiB the kernel drops 100 when somebody needs them: files that were read.
    group(top, V2, 1024, used=400, cached=100)
    finding = memory.available(around(), tmp_path)
    assert (finding.level, finding.what) == (
        "problem",
        "724 MiB available to the control group /; the L1 needs 1 GiB",
    )
    group(top, V2, "max", used=400, cached=100)
    assert memory.available(around(), tmp_path).what == "13 GiB available"


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("own", "shown", "limits", "what"),
    [
        ("/", "/", {"": 512}, "512 MiB available to the control group /"),
        # A container without a namespace of its own for groups sees its group alone.
        ("/docker/a", "/docker/a", {"": 512}, "512 MiB available to the control group /"),
        ("/../b", "/", {"": 512}, "512 MiB available to the control group /"),
        (
            "/x/y",
            "/",
            {"": None, "x": 300, "x/y": 512},
            "300 MiB available to the control group /x",
        ),
        ("/x/y", "/", {"x": 512, "x/y": 300}, "300 MiB available to the control group /x/y"),
        ("/x/y", "/", {"x": None, "x/y": None}, "13 GiB available"),
        ("/x/y", "/", {}, "13 GiB available"),
    ],
)
def test_the_smallest_limit_on_the_way_up_counts(
    version: Version,
    own: str,
    shown: str,
    limits: dict[str, int | None],
    what: str,
    tmp_path: Path,
) -> None:
    top = machine(tmp_path, version, own, shown)
    for name, limit in limits.items():
        group(top / name, version, NO_LIMIT[version] if limit is None else limit)
    assert memory.available(around("--l1-size-gb", "0.01"), tmp_path).what == what


def test_what_brakes_a_unit_counts_as_a_limit(tmp_path: Path) -> None:
    top = machine(tmp_path, V2, "/system.slice/kv.service")
    group(top / "system.slice/kv.service", V2, "max")
    (top / "system.slice/kv.service/memory.high").write_text(f"{256 << 20}\n")
    said = memory.available(around(), tmp_path)
    assert said.what.startswith("256 MiB available to the control group /system.slice/kv.service;")


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """Words before a command that then runs two groups below a real limit of 256 MiB."""
    name = f"kv-sidecar-test-{os.getpid()}"
    for top, file in (("memory", V1[1]), ("", V2[1])):
        outer = Path("/sys/fs/cgroup", top, name)
        with suppress(OSError):
            (outer / "inner").mkdir(parents=True)
            (outer / file).write_text(str(256 << 20))
            yield ["sh", "-c", f'echo $$ > {outer}/inner/cgroup.procs && exec "$@"', "sh"]
            break
    else:
        pytest.skip("no control groups can be made here")
    for each in (outer / "inner", outer):
        each.rmdir()


def test_a_real_group_below_a_real_limit(limited: list[str]) -> None:
    _, findings = doctor("--l1-size-gb", "1", before=limited)
    finding = findings["memory"]
    assert finding["level"] == "problem"
    assert f"/kv-sidecar-test-{os.getpid()}; the L1 needs 1 GiB" in finding["what"]


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
