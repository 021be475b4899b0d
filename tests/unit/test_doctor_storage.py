"""`kv-sidecar doctor`: directories of L2 that cannot do what they must, and io_uring."""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import sys
import threading
from pathlib import Path

import pytest

from sidecar.commands.doctor import bounded, storage
from tests.support.disks import mounted
from tests.support.doctor import around, doctor, only


def fs(path: Path, **more: object) -> str:
    return json.dumps({"type": "fs", "base_path": str(path), "min_free_gb": 0, **more})


def test_a_good_directory_is_left_as_it_was(tmp_path: Path) -> None:
    later = tmp_path / "l2" / "deeper"
    surroundings = around("--l2-adapter", fs(later))
    assert only(storage.check(surroundings), "problem") == []
    assert list(tmp_path.iterdir()) == []
    direct = storage.writable(later, direct=True)
    assert direct.what == "a page written and read back with O_DIRECT"


def test_a_file_system_without_o_direct(tmp_path: Path) -> None:
    with mounted(tmp_path / "ram", "ramfs") as disk:
        findings = list(storage.check(around("--l2-adapter", fs(disk))))
        direct, memory = only(findings, "warning")
        # The server starts there.
        assert only(findings, "problem") == []
        assert direct.what == "no O_DIRECT here"
        assert '"use_odirect": false' in direct.do
        assert "which is memory" in memory.what
        buffered = around("--l2-adapter", fs(disk, use_odirect=False))
        assert [f.what for f in only(storage.check(buffered), "warning")] == [memory.what]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "tmpfs", "-o", "ro") as disk:
        (problem,) = only(storage.check(around("--l2-adapter", fs(disk))), "problem")
    assert problem.what == "Read-only file system"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call")
@pytest.mark.parametrize(("shared", "level"), [(False, "problem"), (True, "ok")])
def test_a_file_system_without_locks(shared: bool, level: str, tmp_path: Path) -> None:
    where = tmp_path / "l2"
    adapter = ("--l2-adapter", fs(where, shared=shared))
    _, findings = doctor(*adapter, before=[sys.executable, "-c", without_call(73, errno.ENOSYS)])
    assert findings[f"L2 {where}"]["level"] == level
    if not shared:
        assert findings[f"L2 {where}"]["what"] == "no locks here: Function not implemented"


def test_a_directory_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(bounded, "_SECONDS", 0.2)
    try:
        (finding,) = bounded.in_time("L2", lambda: [never.wait()])  # type: ignore[list-item]
    finally:
        never.set()
    assert (finding.check, finding.level) == ("L2", "problem")
    assert finding.what == "no answer within 0.2 s"


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(3 << 20))
    findings = storage.check(around("--l2-adapter", fs(small_disk, min_free_gb=0.001)))
    assert [f.what for f in only(findings, "problem")] == ["No space left on device", "0 B free"]
    assert [p.name for p in small_disk.iterdir()] == ["fill"]


def test_more_capacity_than_the_disk_has(small_disk: Path) -> None:
    findings = storage.check(around("--l2-adapter", fs(small_disk, max_capacity_gb=1)))
    assert "the disk fills first" in only(findings, "warning")[0].why


def test_the_directory_of_nixl_is_looked_at_too(small_disk: Path) -> None:
    params = {"file_path": str(small_disk)}
    adapter = {"type": "nixl_store", "backend": "POSIX", "backend_params": params}
    spec = json.dumps({**adapter, "min_free_gb": 1})
    (problem,) = only(storage.check(around("--l2-adapter", spec)), "problem")
    assert "min_free_gb" in problem.why


def without_call(number: int, code: int) -> str:
    """A program that runs its arguments without the system call of this number."""
    return f"""
import ctypes, struct, sys
# seccomp: load the number of the system call; this one fails, the rest is allowed.
code = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x00050000 | {code}),
        (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
fprog = struct.pack("HP", len(code), ctypes.addressof(buffer))
assert libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) == 0
import os
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("more", "level"),
    [("", "warning"), (', "fallback": false', "problem"), (None, "ok")],
)
def test_io_uring_that_seccomp_forbids(more: str | None, level: str, tmp_path: Path) -> None:
    arguments = []
    if more is not None:
        adapter = f'{{"type": "nixl_store", "backend": "POSIX"{more}, "backend_params": '
        arguments = ["--l2-adapter", adapter + f'{{"file_path": "{tmp_path}"}}}}']
    _, findings = doctor(*arguments, before=[sys.executable, "-c", without_call(425, errno.EPERM)])
    assert findings["io_uring"]["level"] == level
    assert findings["io_uring"]["what"].startswith("refused: Operation not permitted")


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ({"libcufile.so.0"}, "warning"),
        ({"libcudart.so.12", "libcudart.so.13"}, "warning"),
        ({"libcudart.so.12"}, "ok"),
    ],
)
def test_gds_needs_its_libraries(
    missing: set[str], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(library: str) -> None:
        if library in missing:
            raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    found = storage.gds_libraries()
    assert found.level == level and "libcufile.so.0" in found.what


@pytest.mark.parametrize("backend", ["POSIX", "GDS", "GDS_MT"])
def test_only_who_wants_gds_hears_of_it(tmp_path: Path, backend: str) -> None:
    adapter = {"type": "nixl_store", "backend": backend}
    spec = json.dumps({**adapter, "backend_params": {"file_path": str(tmp_path)}})
    checks = [finding.check for finding in storage.check(around("--l2-adapter", spec))]
    assert ("GDS" in checks) == (backend != "POSIX")
